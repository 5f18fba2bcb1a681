r"""Generative stochastic networks: denoising autoencoders that generate by a chain.

Bengio et al. 2013, Generalized Denoising Auto-Encoders as Generative Models; Bengio et
al. 2014, Deep Generative Stochastic Networks Trainable by Backprop.

    python -m experiments.gsn --workdir=/tmp/gsn
    python -m experiments.gsn --workdir=/tmp/dae --layers=200 --walkbacks=1
    python -m experiments.gsn --workdir=/tmp/gsn --mode=sample --chain_steps=1000

The chain corrupts x with salt-and-pepper noise, computes the hidden layers, and draws x
anew. Training runs --walkbacks of its steps from a training image, and minimises the
cross-entropy of every reconstruction with that image. One of the --layers is a
denoising autoencoder; with two or more, the layers above the first are noisy and
remember.

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
import math
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax import plotting
from gm_jax.data import binarize, pipeline
from gm_jax.data.binarize import WAYS
from gm_jax.data.image_set import Examples, ImageSet
from gm_jax.errors import UserError
from gm_jax.evaluation import csl, likelihood, mixing, parzen
from gm_jax.families import chains, classifier, scores
from gm_jax.families.chains import Clamped
from gm_jax.families.classifier import Trained
from gm_jax.keys import Stream, Use, derive, fold_in_each, stream
from gm_jax.layers.pixels import to_uint8
from gm_jax.losses import likelihoods
from gm_jax.models.gsn import GSN, Hidden, Noise
from gm_jax.sampling import walkback
from gm_jax.sampling.gibbs import uniforms
from gm_jax.training import command, optimizer, train_state
from gm_jax.training.contracts import (
    ByExample,
    Codes,
    Experiment,
    HostBatch,
    Pictures,
    Say,
)
from gm_jax.training.settings import Sizes, field
from gm_jax.training.train_state import (
    Batch,
    LossOutput,
    ModelState,
    Params,
    TrainState,
    make_train_step,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(chains.Config):
    """Settings of the generative stochastic network."""

    binarize: str = field(
        'threshold',
        'make pixels 0 or 1: x >= V/2 (threshold), one fixed draw (static) or a fresh '
        'draw at each step (dynamic); none for a set that is binary, or to take grey '
        'levels for probabilities', choices=WAYS,
    )
    num_steps: int = field(4000, 'training steps', low=1)
    learning_rate: float = field(3e-3, 'peak learning rate', low=0.0)
    batch_size: int = field(
        100, 'examples per step, over all devices of all processes', low=1
    )
    eval_every: int = field(1000, 'steps between evaluations', low=1, free=True)
    checkpoint_every: int = field(
        1000, 'steps between checkpoints', low=1, free=True
    )
    eval_batch_size: int = field(
        1000, 'examples per evaluation step; the final evaluation runs its chains anew '
        'for each such step; 0: the batch size', low=0, free=True,
    )
    layers: Sizes = field(
        (200, 200), 'units of each hidden layer; one layer is a denoising autoencoder'
    )
    activation: str = field('tanh', 'nonlinearity', choices=('tanh', 'sigmoid'))
    input_noise: float = field(
        0.4, 'share of pixels that a step of the chain replaces by coin flips',
        low=0.0, high=1.0,
    )
    hidden_noise: float = field(
        2.0, 'standard deviation of the noise before and after the nonlinearity, in '
        'all hidden layers but the first', low=0.0,
    )
    walkbacks: int = field(
        4, 'steps of the chain that training runs from each image; 1: no walkback',
        low=1, high=1000,
    )
    chain_steps: int = field(
        200, 'steps of the chain to an image that is generated, or to the first state '
        'that is used', low=1, high=1_000_000, free=True,
    )
    thin: int = field(
        10, 'steps between the states of a chain that are used', low=1,
        high=1_000_000, free=True,
    )
    test_samples: int = field(
        0, 'states of the chain in the final evaluation of binary images; 0: up to '
        '10,000, as many as take ten minutes or a tenth of the time of training',
        low=0, free=True,
    )
    parzen_samples: int = field(
        1000, 'samples, k-means centroids and training images that are compared by '
        'Parzen windows; 0: no such comparison', low=0, high=100_000,
        evaluation_only=True,
    )
    classifier: str = field(
        '', 'work directory of the experiment `classifier` on the same set, which '
        'counts how often chains change their class', evaluation_only=True,
    )


# 500 epochs of 60,000 images. In place of Adam the authors have gradient descent with
# momentum, at a decaying rate for two layers; they train these on grey levels, which
# have no likelihood (--binarize=none).
_PAPER = Config(
    dataset='mnist', num_steps=300_000, learning_rate=1e-3, log_every=300,
    eval_every=15_000, checkpoint_every=3_000, eval_batch_size=10_000,
    chain_steps=1000, thin=100, test_samples=10_000, parzen_samples=10_000,
)
PRESETS = {
    'paper': dataclasses.replace(_PAPER, layers=(1500, 1500)),
    'paper_dae': dataclasses.replace(
        _PAPER, layers=(2000,), activation='sigmoid', walkbacks=5
    ),
}

# The states of a chain that test images are compared with at a time, and how many
# chains they come from.
CHUNK, CHAINS = 1000, 100
TEST_SAMPLES = (10_000, 5_000, 2_000, 1_000)
# The steps whose mixing is measured, and the most values of all steps of all chains.
_MIXING_STEPS, _MIXING_VALUES = 1000, 2**24
_LAGS = (1, 10, 100)
_FRAMES = 16  # steps of a chain that a picture shows
# Images that Parzen windows are compared with, and values of them, at most.
_SEEN, _SEEN_VALUES = 60_000, 2**26
INEXACT = (
    'the rest is drawn by a chain that keeps what is given. They are samples '
    'conditioned on all given pixels only as far as P(x|x~) is exact and the chain has '
    'forgotten its start.'
)


class Setting(NamedTuple):
    """What the functions of the experiment have in common.

    Attributes:
        config: the settings.
        data: the image set.
        model: the network.
    """

    config: Config
    data: ImageSet
    model: GSN

    @property
    def is_binary(self) -> bool:
        """Whether the images are bits, which the network gives probabilities."""
        return binarize.num_values(self.data) == 2


def build(config: Config, data: ImageSet) -> Experiment:
    """Make the experiment."""
    s = Setting(config, data, make_model(config, data))
    # Sampling needs only a checkpoint, so the image set may have no splits.
    if config.parzen_samples and data.splits and len(data.splits['train']) < 2:
        raise UserError(
            f'{data.name} has one training image: Parzen windows need two at least; '
            f'pass --parzen_samples=0.'
        )
    judge = None
    if config.classifier and data.splits:
        judge = classifier.load(config.classifier, data)
    samplers = chains.samplers(config, data, functools.partial(sample, s), INEXACT)
    return Experiment(
        init=functools.partial(init, s),
        train_step=make_train_step(functools.partial(loss, s), ema_decay=config.ema),
        evaluation=make_evaluation(s),
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
        finish=functools.partial(finish, s, judge),
        single_steps=False,
        loss_unit='nats per image',
    )


def make_model(config: Config, data: ImageSet) -> GSN:
    """Make the network for a data set."""
    return GSN(
        num_dims=math.prod(data.image_shape),
        layers=config.layers,
        activation={'tanh': jnp.tanh, 'sigmoid': jax.nn.sigmoid}[config.activation],
        dtype=jnp.dtype(config.dtype),
    )


def init(s: Setting, rng: jax.Array) -> TrainState:
    """Return the initial training state."""
    x = jnp.zeros((1, s.model.num_dims))
    params = s.model.init(rng, x, s.model.start(1))['params']
    return train_state.create(params, optimizer.make(s.config), ema=s.config.ema > 0)


def flat(
    s: Setting, image: jax.Array | np.ndarray, rngs: jax.Array
) -> jax.Array:
    """Return images as the network sees them, [B, D] in [0, 1]."""
    x = binarize.to_unit_range(derive(rngs, Use.PIXELS), image, s.data)
    return x.reshape(len(x), -1)


def draw_noise(s: Setting, rngs: jax.Array) -> Noise | None:
    """Draw the noise of the layers above the first."""
    if not s.config.hidden_noise:
        return None

    def normal(number: int, size: int) -> jax.Array:
        draw = jax.vmap(lambda rng: jax.random.normal(rng, (size,)))
        return s.config.hidden_noise * draw(fold_in_each(rngs, number))

    return tuple(
        (normal(2 * i, size), normal(2 * i + 1, size))
        for i, size in enumerate(s.config.layers[1:])
    )


def run_chain(
    s: Setting, variables: dict[str, Any], rngs: jax.Array, x: jax.Array, num: int,
    **steps: Any,
) -> jax.Array:
    """Return the logits [num, B, D] of chains from x [B, D]; see `walkback.chain`."""
    def denoise(
        rngs: jax.Array, x: jax.Array, hidden: Hidden
    ) -> tuple[jax.Array, Hidden]:
        return s.model.apply(variables, x, hidden, draw_noise(s, rngs))

    start = walkback.State(x, s.model.start(len(x)))
    rate = s.config.input_noise
    return walkback.chain(rngs, denoise, start, num, rate=rate, **steps)[1]


def first_images(
    s: Setting, variables: dict[str, Any], rngs: jax.Array
) -> jax.Array:
    """Draw where chains start: images [B, D] of bits from P(x|h) with h = 0.

    But for its biases a network of tanh is odd, and gives the negative of an image for
    -h. Chains from coin flips may stay among the negatives (on MNIST all of them do),
    which training from images never visits. The biases have learned the background.
    """
    h = s.model.start(len(rngs))[0]
    logits = s.model.apply(variables, h, method=GSN.decode)
    u = uniforms(derive(rngs, Use.CORRUPTION), s.model.num_dims)
    return (u < jax.nn.sigmoid(logits)).astype(jnp.float32)


def from_start(
    s: Setting, variables: dict[str, Any], rngs: jax.Array, num: int
) -> jax.Array:
    """Return the logits [num, B, D] of B chains after --chain_steps, --thin apart."""
    rngs = derive(rngs, Use.CHAIN)
    x = first_images(s, variables, rngs)
    return run_chain(
        s, variables, rngs, x, num, every=s.config.thin,
        burn_in=max(s.config.chain_steps - s.config.thin, 0),
    )


def reconstruct(
    s: Setting, variables: dict[str, Any], x: jax.Array, rngs: jax.Array
) -> jax.Array:
    """Return the cross-entropy of every reconstruction with x [B, D], [B, N] nats."""
    chain_rngs = derive(rngs, Use.CHAIN)
    logits = run_chain(s, variables, chain_rngs, x, s.config.walkbacks)
    return -jax.vmap(likelihoods.bernoulli_log_prob, (0, None), 1)(logits, x)


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


def make_evaluation(s: Setting) -> ByExample:
    """Return the evaluation: by the chain if the images are binary."""
    eval_step = functools.partial(evaluate, s)
    summary = functools.partial(summarize, s)
    if not s.is_binary:
        return ByExample(eval_step, eval_step, summary)
    size, wanted = math.prod(chunk_shape(s)), s.config.test_samples
    return ByExample(
        eval_step,
        functools.partial(test, s),
        summary,
        test_chunks=-(-(wanted or TEST_SAMPLES[0]) // size),
        fewer_chunks=() if wanted else tuple(n // size for n in TEST_SAMPLES[1:]),
        chunk_size=size,
        log_prob='log_px',
    )


def chunk_shape(s: Setting) -> tuple[int, int]:
    """Return how many states of how many chains test images are compared with."""
    num = min(s.config.test_samples or CHUNK, CHUNK)
    num_chains = min(num, CHAINS)
    return -(-num // num_chains), num_chains


def evaluate(
    s: Setting, state: TrainState, batch: Batch, rng: jax.Array
) -> dict[str, jax.Array]:
    """Compute the loss of each example."""
    rngs = fold_in_each(rng, batch['index'])
    x = flat(s, batch['image'], rngs)
    nats = reconstruct(s, state.eval_variables, x, rngs)
    return {'loss': nats.sum(axis=1), 'denoising_nats': nats[:, 0]}


def test(
    s: Setting, state: TrainState, batch: Batch, rng: jax.Array
) -> dict[str, jax.Array]:
    """Compare each example with the states of the chains of this chunk."""
    rngs = fold_in_each(rng, batch['index'])
    num, num_chains = chunk_shape(s)
    # The same chains for all batches of examples.
    chain_rng = fold_in_each(derive(rng, Use.CHAIN), batch['chunk'][0])
    chain_rngs = fold_in_each(chain_rng, jnp.arange(num_chains))
    logits = from_start(s, state.eval_variables, chain_rngs, num)
    x = flat(s, batch['image'], rngs)
    log_px = csl.curve(x, logits.reshape(-1, s.model.num_dims), curve_sizes(s))
    nats = reconstruct(s, state.eval_variables, x, rngs)
    return {'denoising_nats': nats[:, 0], 'csl': log_px, 'log_px': log_px[:, -1]}


def curve_sizes(s: Setting) -> tuple[int, ...]:
    """Return the numbers of states below a chunk at which the likelihood is known."""
    most = math.prod(chunk_shape(s))
    return (*(n for n in (1, 10, 100) if n < most), most)


def summarize(s: Setting, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the numbers of results.json."""
    numbers = {'denoising_nats': float(arrays['denoising_nats'].mean())}
    if not s.is_binary:
        return numbers
    log_px, sizes = arrays['log_px'], curve_sizes(s)
    means = arrays['csl'].reshape(-1, len(sizes)).mean(axis=0, dtype=np.float64)
    curve = {str(size): -float(mean) for size, mean in zip(sizes, means)}
    chunks = log_px.shape[1]
    for num in (*(2**k for k in range(1, chunks.bit_length())), chunks):
        mean = likelihood.combine(log_px[:, :num]).mean()
        curve[str(num * sizes[-1])] = -float(mean)
    states = chunks * sizes[-1]
    return {
        **likelihood.report(
            likelihood.combine(log_px), s.model.num_dims, f'csl-{states}'
        ),
        'chain_states': states,
        'csl_nats_by_states': curve,
        **numbers,
    }


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


def finish(
    s: Setting, judge: Trained | None, state: TrainState, say: Say
) -> tuple[dict[str, Any], Pictures]:
    """Measure how the chain mixes, and compare its images by Parzen windows."""
    rng = stream(s.config.seed, Stream.FINISH)
    numbers = measure_mixing(s, judge, state, derive(rng, Use.CHAIN))
    if not s.config.parzen_samples:
        return numbers, {}
    say('comparing samples by Parzen windows')
    return {**numbers, 'parzen': compare(s, state, derive(rng, Use.DRAW))}, {}


def measure_mixing(
    s: Setting, judge: Trained | None, state: TrainState, rng: jax.Array
) -> dict[str, Any]:
    """Follow chains, after the burn-in, for a thousand steps."""
    num_dims = s.model.num_dims
    num = min(20, max(1, _MIXING_VALUES // (_MIXING_STEPS * num_dims)))
    # Every step of the chain counts here, whatever --thin.
    every = Setting(dataclasses.replace(s.config, thin=1), s.data, s.model)
    follow = jax.jit(functools.partial(from_start, every, num=_MIXING_STEPS))
    rngs = fold_in_each(rng, jnp.arange(num))
    x = np.asarray(jax.nn.sigmoid(follow(state.eval_variables, rngs))).swapaxes(0, 1)
    rho = mixing.autocorrelation(x, _LAGS)
    numbers: dict[str, Any] = {
        'autocorrelation': {str(k): float(r) for k, r in zip(_LAGS, rho)}
    }
    if judge is not None:
        images = plotting.to_uint8(x).reshape(-1, *s.data.image_shape)
        labels = judge.classify(images).reshape(num, _MIXING_STEPS)
        numbers |= mixing.label_scores(labels)
    return numbers


def compare(s: Setting, state: TrainState, rng: jax.Array) -> dict[str, float]:
    """Compare samples and training images with the test set by Parzen windows."""
    def seen(examples: Examples) -> np.ndarray:
        most = min(len(examples), _SEEN, _SEEN_VALUES // s.model.num_dims)
        rows = pipeline.example_order(0, 0, most, len(examples))
        return scores.as_seen(examples, rows, s.data).reshape(most, -1) / 255.0

    num = s.config.parzen_samples
    num_chains = min(num, CHAINS)
    draw = jax.jit(functools.partial(from_start, s, num=-(-num // num_chains)))
    logits = draw(state.eval_variables, fold_in_each(rng, jnp.arange(num_chains)))
    samples = np.asarray(jax.nn.sigmoid(logits)).reshape(-1, s.model.num_dims)[:num]
    splits = s.data.splits
    return parzen.compare(seen(splits['test']), samples, seen(splits['train']))


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
