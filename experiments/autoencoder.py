r"""Linear, deep and convolutional autoencoders, and classifiers on their features.

Hinton and Salakhutdinov 2006, Reducing the Dimensionality of Data with Neural Networks.

    python -m experiments.autoencoder --workdir=/tmp/autoencoder
    python -m experiments.autoencoder --workdir=/tmp/conv --preset=mnist_conv \
        --data_dir=DIR

The loss is ||x - x_hat||^2 with pixels in [0, 1], summed over the image. If the set has
labels, a run ends with classifiers trained on the labels of 100, of 1000 and of all
training images: a linear one on the codes of the frozen encoder, and the same encoder
with a softmax layer, trained from the autoencoder's parameters (fine-tuned) or from
scratch. The last two have the same labels, batches, optimizer and number of steps.
"""

if __name__ == '__main__':
    from gm_jax import entry

    entry.begin()  # before JAX is imported

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax import plotting
from gm_jax.data import binarize, pipeline
from gm_jax.data.image_set import ImageSet
from gm_jax.families import probes
from gm_jax.keys import Use, derive, fold_in_each
from gm_jax.layers.pixels import to_uint8
from gm_jax.losses import reconstruction
from gm_jax.models.autoencoder import Autoencoder, Classifier
from gm_jax.sampling import latent
from gm_jax.training import command, optimizer, train_state
from gm_jax.training.contracts import (
    ByExample,
    Codes,
    Experiment,
    HostBatch,
    Pictures,
)
from gm_jax.training.settings import MOST_UNITS, Sizes, field
from gm_jax.training.train_state import (
    Batch,
    LossOutput,
    ModelState,
    Params,
    TrainState,
    make_train_step,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(probes.Config):
    """Settings of the autoencoder."""

    num_steps: int = field(3000, 'training steps', low=1)
    eval_every: int = field(1000, 'steps between evaluations', low=1, free=True)
    checkpoint_every: int = field(
        1000, 'steps between checkpoints', low=1, free=True
    )
    network: str = field(
        'deep', 'encoder and decoder: linear (each one layer and a sigmoid), deep '
        '(fully connected) or conv', choices=('linear', 'deep', 'conv'),
    )
    hidden: Sizes = field(
        (256, 256), 'widths of the layers from x to the code, or feature maps for '
        'conv; linear has none'
    )
    latent_dim: int = field(16, 'size of the code', low=1, high=MOST_UNITS)

    @property
    def without_effect(self) -> dict[str, str]:
        """The settings that change nothing beside the others, and why, by name."""
        found = super().without_effect
        if self.network == 'linear':
            found['hidden'] = 'is not used by --network=linear'
        if not self.probe:
            found['probe_steps'] = 'is not used with --noprobe'
        return found


_MNIST = Config(
    dataset='mnist', latent_dim=30, num_steps=20_000, eval_every=2000, log_every=500,
    probe_steps=3000, checkpoint_every=2000,
)
PRESETS = {
    'mnist_linear': dataclasses.replace(_MNIST, network='linear'),
    'mnist_deep': dataclasses.replace(_MNIST, hidden=(1000, 500, 250)),
    'mnist_conv': dataclasses.replace(
        _MNIST, network='conv', hidden=(32, 64), num_steps=10_000
    ),
}

# Training images whose codes are mixed to generate samples.
POOL = 256


class Setting(NamedTuple):
    """What the functions of the experiment have in common.

    Attributes:
        config: the settings.
        data: the image set.
        model: the networks.
    """

    config: Config
    data: ImageSet
    model: Autoencoder


def build(config: Config, data: ImageSet) -> Experiment:
    """Make the experiment."""
    s = Setting(config, data, make_model(config, data))
    eval_step = functools.partial(evaluate, s)
    return Experiment(
        init=functools.partial(init, s),
        train_step=make_train_step(functools.partial(loss, s), ema_decay=config.ema),
        evaluation=ByExample(eval_step, eval_step, functools.partial(summarize, s)),
        sample=functools.partial(sample, s),
        sampler='decoded midpoints of two training codes: there is no prior',
        codes=Codes(
            functools.partial(code, s), functools.partial(picture, s),
            functools.partial(code, s), config.latent_dim,
        ),
        pictures=functools.partial(pictures, s),
        single_steps=config.network == 'conv',
        loss_unit='squared error per image',
        finish=functools.partial(probes.compare, make_probe(s)) if config.probe
        else None,
    )


def make_model(config: Config, data: ImageSet) -> Autoencoder:
    """Make the networks for a data set."""
    return Autoencoder(
        image_shape=data.image_shape,
        network=config.network,
        hidden=config.hidden,
        latent_dim=config.latent_dim,
        dtype=jnp.dtype(config.dtype),
    )


def make_probe(s: Setting) -> probes.Probe:
    """Return what the classifiers at the end of a run are built from."""
    def encode(params: Params, x: jax.Array) -> jax.Array:
        return s.model.apply({'params': params}, x, method=Autoencoder.encode)

    return probes.Probe(
        config=s.config,
        data=s.data,
        encode=encode,
        classifier=Classifier(s.model, s.data.num_classes),
        encoder='autoencoder',
        single_steps=s.config.network == 'conv',
    )


def init(s: Setting, rng: jax.Array) -> TrainState:
    """Return the initial training state."""
    params = s.model.init(rng, jnp.zeros((1, *s.data.image_shape)))['params']
    # Kept in the state, so that a checkpoint is all that sampling needs.
    images = pipeline.first_images(s.data, POOL)
    pool = jnp.asarray(np.resize(images, (POOL, *s.data.image_shape)))
    return train_state.create(
        params, optimizer.make(s.config), ema=s.config.ema > 0,
        model_state={'pool': pool},
    )


def loss(
    s: Setting, params: Params, model_state: ModelState, batch: Batch, rngs: jax.Array,
    *, step: jax.Array, axis_name: str | None,
) -> LossOutput:
    """Compute ||x - x_hat||^2; see `train_state.LossFn`."""
    del step, axis_name
    x = binarize.to_unit_range(derive(rngs, Use.PIXELS), batch['image'], s.data)
    x_hat = s.model.apply({'params': params}, x)
    error = reconstruction.squared_error(x_hat, x).mean()
    return LossOutput(error, {'squared_error_per_image': error}, model_state)


def evaluate(
    s: Setting, state: TrainState, batch: Batch, rng: jax.Array
) -> dict[str, jax.Array]:
    """Compute the error of each example."""
    rngs = fold_in_each(rng, batch['index'])
    x, z = encode(s, state, batch['image'], rngs)
    error = reconstruction.squared_error(decode(s, state, z), x)
    return {'loss': error, 'squared_error_per_image': error}


def summarize(s: Setting, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the numbers of results.json."""
    error = float(arrays['squared_error_per_image'].mean(dtype=np.float64))
    return {
        'squared_error_per_image': error,
        'squared_error_per_value': error / int(np.prod(s.data.image_shape)),
    }


def encode(
    s: Setting, state: TrainState, image: jax.Array, rngs: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return images in [0, 1], and their codes [B, Z]."""
    x = binarize.to_unit_range(derive(rngs, Use.PIXELS), image, s.data)
    variables = {'params': state.eval_params}
    return x, s.model.apply(variables, x, method=Autoencoder.encode)


def code(
    s: Setting, state: TrainState, image: jax.Array, rngs: jax.Array
) -> jax.Array:
    """Return codes [B, Z]."""
    return encode(s, state, image, rngs)[1]


def picture(s: Setting, state: TrainState, z: jax.Array) -> jax.Array:
    """Return reconstructions as uint8 [B, H, W, C]."""
    return to_uint8(decode(s, state, z))


def decode(s: Setting, state: TrainState, z: jax.Array) -> jax.Array:
    """Return reconstructions in [0, 1], [B, H, W, C]."""
    return s.model.apply({'params': state.eval_params}, z, method=Autoencoder.decode)


def sample(
    s: Setting, state: TrainState, rngs: jax.Array, index: jax.Array
) -> jax.Array:
    """Decode midpoints between the codes of two training images."""
    del index
    pool = state.model_state['pool']
    pairs = jax.vmap(lambda rng: jax.random.randint(rng, (2,), 0, len(pool)))(
        derive(rngs, Use.ROWS)
    )
    ends = [
        encode(s, state, pool[pairs[:, i]], fold_in_each(rngs, i))[1] for i in (0, 1)
    ]
    return to_uint8(decode(s, state, (ends[0] + ends[1]) / 2))


def pictures(
    s: Setting, state: TrainState, batch: HostBatch, rng: jax.Array
) -> Pictures:
    """Draw the pictures of a trained model."""
    rngs = fold_in_each(rng, batch['index'])
    x, z = jax.jit(functools.partial(encode, s))(state, batch['image'], rngs)
    return make_pictures(jax.jit(functools.partial(decode, s, state)), x, z)


def make_pictures(
    decode: Callable[[jax.Array], jax.Array], x: jax.Array, z: jax.Array
) -> Pictures:
    """Draw reconstructions, and linear interpolations between codes.

    Args:
        decode: z [N, Z] -> x_hat [N, H, W, C].
        x: [B, H, W, C] in [0, 1].
        z: [B, Z] their codes.

    Returns:
        Pictures by name, uint8 [H, W, C] each.
    """
    x_hat = np.asarray(decode(z[:30]))
    rows = np.arange(16) % len(z)  # a small set has fewer images
    walks = latent.interpolate(z[rows[:8]], z[rows[8:]], 9).swapaxes(0, 1)
    between = np.asarray(decode(walks.reshape(-1, z.shape[1])))
    return {
        'reconstructions': plotting.reconstructions(np.asarray(x[:30]), x_hat),
        'interpolations': plotting.interpolations(between, 9, 'code'),
    }


main = command.Command('autoencoder', __doc__, Config, PRESETS, build)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
