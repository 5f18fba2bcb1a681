r"""Generative stochastic networks: denoising autoencoders that generate by a chain.

Bengio et al. 2013, Generalized Denoising Auto-Encoders as Generative Models; Bengio et
al. 2014, Deep Generative Stochastic Networks Trainable by Backprop.

    python -m experiments.gsn --workdir=/tmp/gsn
    python -m experiments.gsn --workdir=/tmp/dae --layers=200 --walkbacks=1
    python -m experiments.gsn --workdir=/tmp/gsn --mode=sample --chain_steps=5000

The chain corrupts x with salt-and-pepper noise, computes the hidden layers, and draws x
anew. Training runs --walkbacks of its steps from a training image, and minimises the
cross-entropy of every reconstruction with that image. One of the --layers is a
denoising autoencoder; with two or more, the layers above the first are noisy and keep
a state from step to step.

No likelihood can be computed. Binary images are scored by the conservative
sampling-based likelihood, an upper bound on the nats of the chain in expectation which
is far from tight (gm_jax/evaluation/csl.py); grey ones, which the network takes for
probabilities of ones as the papers do, have no such number.
"""

if __name__ == '__main__':
    from gm_jax import entry

    entry.begin()  # before JAX is imported

import dataclasses
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.families import chains, classifier, stochastic_scores
from gm_jax.families.chains import Clamped
from gm_jax.families.stochastic import (
    Config,
    Setting,
    first_images,
    flat,
    make_model,
    reconstruct,
    run_chain,
)
from gm_jax.keys import Use, derive, fold_in_each
from gm_jax.layers.pixels import to_uint8
from gm_jax.models.gsn import GSN
from gm_jax.training import command, optimizer, train_state
from gm_jax.training.contracts import Codes, Experiment, HostBatch, Pictures
from gm_jax.training.train_state import (
    Batch,
    LossOutput,
    ModelState,
    Params,
    TrainState,
    make_train_step,
)

# 500 epochs of 60,000 images. In place of Adam the authors have gradient descent with
# momentum, at a decaying rate for two layers; they train these on grey levels, which
# have no likelihood (--binarize=none).
_PAPER = Config(
    dataset='mnist', num_steps=300_000, learning_rate=1e-3, log_every=300,
    eval_every=15_000, checkpoint_every=3_000, eval_batch_size=10_000,
    chain_steps=1000, thin=100, test_samples=10_000, parzen_samples=10_000,
    hidden_noise=2.0,
)
PRESETS = {
    'paper': dataclasses.replace(_PAPER, layers=(1500, 1500)),
    'paper_dae': dataclasses.replace(
        _PAPER, layers=(2000,), activation='sigmoid', walkbacks=5
    ),
}

_FRAMES = 16  # steps of a chain that a picture shows
INEXACT = (
    'the rest is drawn by a chain that keeps what is given. They are samples '
    'conditioned on all given pixels only as far as P(x|x~) is exact and the chain has '
    'forgotten its start.'
)


def build(config: Config, data: ImageSet) -> Experiment:
    """Make the experiment."""
    s = Setting(config, data, make_model(config, data))
    # Sampling needs only a checkpoint, so the image set may have no splits.
    if config.parzen_samples and data.splits and len(data.splits['train']) < 2:
        raise UserError(
            f'{data.name} has one training image: Parzen windows need two at least; '
            f'pass --parzen_samples=0.'
        )
    judge = classifier.load_if_given(config.classifier, data)
    samplers = chains.samplers(config, data, functools.partial(sample, s), INEXACT)
    return Experiment(
        init=functools.partial(init, s),
        train_step=make_train_step(functools.partial(loss, s), ema_decay=config.ema),
        evaluation=stochastic_scores.make_evaluation(s),
        sample=samplers.sample,
        sampler=f'a chain of {config.chain_steps} steps from P(x|h = 0), mean of '
        f'P(x|h)',
        given=samplers.given,
        complete=samplers.complete,
        codes=Codes(
            functools.partial(encode, s), functools.partial(decode, s),
            functools.partial(encode, s), config.layers[0],
        ),
        pictures=functools.partial(pictures, s),
        finish=functools.partial(stochastic_scores.finish, s, judge),
        single_steps=False,
        loss_unit='nats per image',
    )


def init(s: Setting, rng: jax.Array) -> TrainState:
    """Return the initial training state."""
    x = jnp.zeros((1, s.model.num_dims))
    params = s.model.init(rng, x, s.model.start(1))['params']
    return train_state.create(params, optimizer.make(s.config), ema=s.config.ema > 0)


def loss(
    s: Setting, params: Params, model_state: ModelState, batch: Batch, rngs: jax.Array,
    *, step: jax.Array, axis_name: str | None,
) -> LossOutput:
    """Compute the sum over the walkbacks; see `train_state.LossFn`."""
    del step, axis_name
    x = flat(s, batch['image'], rngs)
    nats = reconstruct(s, {'params': params}, x, rngs)
    metrics = {'denoising_nats': nats[:, 0].mean()}
    return LossOutput(nats.sum(axis=1).mean(), metrics, model_state)


def sample(
    s: Setting, state: TrainState, rngs: jax.Array, kept: Clamped | None
) -> jax.Array:
    """Run one chain for each image, which keeps what is known of it."""
    chain_rngs = derive(rngs, Use.CHAIN)
    x = first_images(s, state.eval_variables, chain_rngs)
    if kept is not None:
        x = jnp.where(kept.known, kept.x, x)
    logits = run_chain(
        s, state.eval_variables, chain_rngs, x, 1, burn_in=s.config.chain_steps - 1,
        known=None if kept is None else kept.known,
    )
    mean = jax.nn.sigmoid(logits[0])
    mean = mean if kept is None else jnp.where(kept.known, x, mean)
    return to_uint8(mean.reshape(-1, *s.data.image_shape))


def encode(
    s: Setting, state: TrainState, image: jax.Array, rngs: jax.Array
) -> jax.Array:
    """Return the first hidden layer [B, H_1] of images without noise."""
    x = flat(s, image, rngs)
    return s.model.apply(state.eval_variables, x, method=GSN.encode)


def decode(s: Setting, state: TrainState, h: jax.Array) -> jax.Array:
    """Return the mean of P(x|h_1) as uint8 [B, H, W, C]."""
    logits = s.model.apply(state.eval_variables, h, method=GSN.decode)
    return to_uint8(jax.nn.sigmoid(logits).reshape(-1, *s.data.image_shape))


def pictures(
    s: Setting, state: TrainState, batch: HostBatch, rng: jax.Array
) -> Pictures:
    """Draw chains frame by frame: from test images, and with half of them clamped."""
    num = min(8, len(batch['index']))
    rngs = fold_in_each(rng, batch['index'][:num])
    x = flat(s, batch['image'][:num], rngs)
    height = s.data.image_shape[0]
    upper = np.arange(height)[:, None, None] < height // 2
    upper = np.broadcast_to(upper, (num, *s.data.image_shape)).reshape(x.shape)
    half = jnp.where(upper, x, first_images(s, state.eval_variables, rngs))

    def follow(
        variables: dict[str, Any], rngs: jax.Array, x: jax.Array, known: jax.Array
    ) -> jax.Array:
        frames = jax.nn.sigmoid(run_chain(s, variables, rngs, x, _FRAMES, known=known))
        return jnp.where(known[None], x[None], frames)

    compiled, variables = jax.jit(follow), state.eval_variables
    free = compiled(variables, derive(rngs, Use.CHAIN), x, jnp.zeros_like(upper))
    kept = compiled(variables, derive(rngs, Use.DRAW), half, jnp.asarray(upper))
    rows = [str(row) for row in batch['index'][:num]]
    steps = [str(step) for step in range(1, _FRAMES + 1)]
    shape, label = s.data.image_shape, 'step of the chain'
    films = [
        np.stack(frames, axis=1).reshape(num, len(frames), *shape)
        for frames in ([x, *free], [half, *kept, x])
    ]
    return {
        'chains': chains.film(
            films[0], rows=rows, columns=['start', *steps], xlabel=label,
            title='A chain from each test image, step by step',
        ),
        'completions': chains.film(
            films[1], rows=rows, columns=['start', *steps, 'truth'], xlabel=label,
            title='The upper half is kept, and the lower half is drawn',
        ),
    }


main = command.Command('gsn', __doc__, Config, PRESETS, build)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
