"""PixelVAE: a latent z for the global structure, a PixelCNN for the details.

Gulrajani et al. 2017, PixelVAE: A Latent Variable Model for Natural Images.

    python -m experiments.pixel_vae --workdir=/tmp/pixel_vae
    python -m experiments.pixel_vae --workdir=/tmp/pixel_vae --mode=sample

The preset paper has the sizes of the authors' network for statically binarized MNIST
and their 200,000 steps of Adam. Published after these: 79.66 nats by the bound, about
79.02 by 1000 importance samples; without z, 80.10. Theirs has weight norm too, and
clips each entry of the gradient.
"""

if __name__ == '__main__':
    from gm_jax import entry

    entry.begin()  # before JAX is imported

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax import plotting
from gm_jax.data import binarize
from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.evaluation import alarms
from gm_jax.families import autoregressive, density, generation, setting, variational
from gm_jax.families.density import Density, Mode
from gm_jax.families.setting import Variables
from gm_jax.families.variational import Terms
from gm_jax.keys import Stream, Use, derive, fold_in_each, stream
from gm_jax.models.pixel_vae import PixelVAE
from gm_jax.models.vae import Gaussian
from gm_jax.sampling import autoregressive as samplers
from gm_jax.sampling import distributions, latent
from gm_jax.sampling.distributions import Quantile
from gm_jax.training import command
from gm_jax.training.contracts import Codes, Experiment, HostBatch, Pictures
from gm_jax.training.settings import MOST_LAYERS, MOST_SIDE, MOST_UNITS, Sizes, field
from gm_jax.training.train_state import Batch, Metrics, ModelState, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(setting.Config):
    """Settings of the PixelVAE."""

    num_steps: int = field(1000, 'training steps', low=1)
    latent_dim: int = field(16, 'size of z', low=1, high=MOST_UNITS)
    encoder: Sizes = field(
        (16, 32), 'feature maps of the encoder; each halves the sides of the image'
    )
    features: int = field(
        0, 'feature maps of each layer of the decoder; 0: 16, or 18 for colours', low=0,
        high=MOST_UNITS,
    )
    decoder_layers: int = field(
        2, 'layers of the decoder after the first; the fewer, the more is left to z',
        low=1, high=MOST_LAYERS,
    )
    first_kernel: int = field(3, 'side of the first kernel', low=3, high=MOST_SIDE)
    kernels: Sizes = field(
        (3,), 'sides of the other kernels in turn, e.g. 5,3', high=MOST_SIDE
    )
    head: int = field(
        32, 'feature maps of each gate before the logits', low=1, high=MOST_UNITS
    )
    kl_warmup: float = field(
        0.5, 'share of the run over which the weight of the KL term rises from 0 to 1',
        low=0.0, high=1.0,
    )
    free_bits: float = field(
        0.1, 'nats of KL per latent unit that cost nothing; 0 lets a CPU compute the '
        'gradient for few images at a time', low=0.0,
    )
    test_samples: int = field(
        0, 'importance samples per image in the final evaluation; 0: up to 1000, as '
        'many as take ten minutes or a tenth of the time of training', low=0, free=True,
    )

    def __post_init__(self) -> None:
        """Raise UserError for settings that are not allowed."""
        super().__post_init__()
        sides = (*self.kernels, self.first_kernel)
        if any(side % 2 == 0 or side < 3 for side in sides):
            raise UserError('--kernels and --first_kernel must be odd, 3 or more.')
        if self.class_conditional:
            raise UserError('The PixelVAE takes no --class_conditional.')
        if self.given:
            raise UserError(
                'The PixelVAE takes no --given: z is drawn for whole images, whatever '
                'is known of their pixels.'
            )
        if self.free_bits and self.micro_batch:
            raise UserError(
                '--free_bits needs the mean KL of a whole batch: leave out '
                '--micro_batch, or pass --free_bits=0.'
            )

    @property
    def spread_over_run(self) -> tuple[str, ...]:
        """The flags by which each step depends on how many there are in all."""
        warmup = (f'--kl_warmup={self.kl_warmup}',) if self.kl_warmup else ()
        return (*super().spread_over_run, *warmup)


_PAPER = Config(
    dataset='binarized_mnist', encoder=(32, 64, 64), features=16, decoder_layers=12,
    first_kernel=7, kernels=(5,), head=16, kl_warmup=0.05, free_bits=0.0,
    batch_size=100, learning_rate=1e-3, schedule='constant', ema=0.0, num_steps=200_000,
    log_every=50, eval_every=5_000, checkpoint_every=500, eval_batch_size=50,
    test_samples=1000,
)
PRESETS = {
    'paper': _PAPER,
    # For two or three hours of one CPU core. The bound is an average over the samples:
    # ten are enough for it, though not for the estimate of log p(x).
    'hour': dataclasses.replace(
        _PAPER, kl_warmup=0.2, optimizer='muon', weight_decay=0.2, batch_size=32,
        learning_rate=3e-3, schedule='cosine', ema=0.999, num_steps=14_000,
        eval_every=7_000, checkpoint_every=250, eval_batch_size=10, test_samples=10,
    ),
}

# Importance samples per image that are decoded together: as many as there are bytes
# for, at about this many floats for each pixel and feature map.
_CHUNKS, _CHUNK_BYTES, _FLOATS = (10, 5, 1), 2**30, 16
# The most importance samples, as published.
_TEST_SAMPLES = 1000


class Setting(NamedTuple):
    """What the functions of the experiment have in common.

    Attributes:
        config: the settings.
        data: the image set.
        networks: the encoder and the decoder.
        decoder: the decoder as an autoregressive model with h = z, and its samplers.
    """

    config: Config
    data: ImageSet
    networks: PixelVAE
    decoder: setting.Setting


def build(config: Config, data: ImageSet) -> Experiment:
    """Make the experiment."""
    decoder = autoregressive.make_setting(config, data, make_model=make_model)
    decoder = decoder._replace(num_latents=config.latent_dim)
    s = Setting(config, data, make_networks(config, data), decoder)
    chunks = variational.chunks(chunk_size(s), config.test_samples, _TEST_SAMPLES)
    bound = Density(
        init=functools.partial(init, s),
        terms=functools.partial(compute_terms, s),
        loss=functools.partial(loss, s),
        numbers=numbers,
        estimates=variational.estimates,
        report=functools.partial(variational.report, decoder.num_dims, chunks.size),
        num_chunks=chunks.num,
        fewer_chunks=chunks.fewer,
        chunk_size=chunks.size,
        log_prob='log_w',
    )
    made = generation.samplers(decoder)
    by_host = config.sampler != 'incremental'
    micro_batch = autoregressive.micro_batch_size(config, decoder.model)
    experiment = density.build(
        config,
        bound,
        sample=made.sample,
        sampler=config.sampler,
        host_sampler=made.make_host_sampler if by_host else None,
        pictures=functools.partial(pictures, s),
        single_steps=True,
        # Free bits need the mean KL of all examples.
        micro_batch=0 if config.free_bits else micro_batch,
        eval_micro_batch=micro_batch,
    )
    codes = functools.partial(encode, s)
    return experiment._replace(
        codes=Codes(codes, functools.partial(decode, s), codes, config.latent_dim),
        alarms=find_alarms,
    )


def make_networks(config: Config, data: ImageSet) -> PixelVAE:
    """Make the encoder and the decoder.

    Raises:
        UserError: the settings do not fit the images.
    """
    channels = data.image_shape[2]
    features = config.features or setting.feature_maps(channels)
    setting.check_colours(features, channels)
    return PixelVAE(
        image_shape=data.image_shape,
        num_values=binarize.num_values(data),
        latent_dim=config.latent_dim,
        encoder_maps=config.encoder,
        features=features,
        num_layers=config.decoder_layers,
        first_kernel=config.first_kernel,
        kernel_sizes=config.kernels,
        head=config.head,
        dtype=jnp.dtype(config.dtype),
    )


def make_model(config: Config, data: ImageSet) -> setting.Model:
    """Make the decoder's functions, with h = z, of the variables of both networks."""
    networks = make_networks(config, data)

    def apply(
        variables: Variables, x: jax.Array, z: jax.Array | None, **mode: Any
    ) -> jax.Array:
        return networks.apply(variables, x, z, method='decode')

    def incremental(
        variables: Variables, z: jax.Array | None, quantile: Quantile,
        uniform: jax.Array, x: jax.Array, known: jax.Array,
    ) -> jax.Array:
        bound = networks.bind(variables).decoder
        network = setting.linen_network(bound.clone(parent=None), bound.variables, z)
        return samplers.incremental(network, quantile, uniform, x, known)

    return setting.Model(
        init=lambda rng, x, h: networks.init(rng, x[:1]),
        apply=apply,
        incremental=incremental,
        distribution=distributions.discrete(
            binarize.num_values(data), data.image_shape[2]
        ),
    )


def chunk_size(s: Setting) -> int:
    """Return how many importance samples the final evaluation decodes together."""
    height, width, _ = s.data.image_shape
    floats = _FLOATS * s.networks.features * height * width * s.config.eval_batch
    fit = next((n for n in _CHUNKS if 4 * n * floats <= _CHUNK_BYTES), _CHUNKS[-1])
    return variational.chunk_size(fit, s.config.test_samples)


def init(s: Setting, rng: jax.Array) -> Variables:
    """Make the variables of both networks."""
    x = jnp.zeros((1, *s.data.image_shape), jnp.int32)
    return s.networks.init(derive(rng, Use.WEIGHTS), x)


def observe(
    s: Setting, variables: Variables, image: jax.Array, rngs: jax.Array
) -> tuple[jax.Array, Gaussian]:
    """Return the images as integers x [B, H, W, C], and q(z|x)."""
    x = binarize.integers(derive(rngs, Use.PIXELS), image, s.data)
    return x, s.networks.apply(variables, x, method='encode')


def compute_terms(
    s: Setting, variables: Variables, batch: Batch, rngs: jax.Array, mode: Mode
) -> tuple[Terms, ModelState]:
    """Compute the terms of the bounds of a batch; see `density.TermsFn`."""
    x, q = observe(s, variables, batch['image'], rngs)
    num = chunk_size(s) if mode.final else 1
    latent_rngs = rngs if mode.train else fold_in_each(rngs, mode.chunk)

    def log_px(z: jax.Array) -> jax.Array:
        each = jnp.repeat(x, num, axis=0)
        params = s.networks.apply(variables, each, z, method='decode')
        return s.decoder.log_prob(params, each)

    return variational.sampled_terms(q, log_px, latent_rngs, num), {}


def loss(s: Setting, terms: Terms, mode: Mode) -> tuple[jax.Array, Metrics]:
    """Compute minus the bound with the weight of this step, and its terms."""
    weight = jnp.float32(1)
    if s.config.kl_warmup:
        steps = s.config.kl_warmup * s.config.num_steps
        weight = jnp.minimum(weight, (mode.step + 1) / steps)
    value, metrics = variational.negative_elbo(
        terms, beta=weight, free_bits=s.config.free_bits, axis_name=mode.axis_name
    )
    return value, {**metrics, 'kl_weight': weight}


def numbers(terms: Terms) -> dict[str, jax.Array]:
    """Return the numbers of an evaluation during training: minus the ELBO's terms."""
    parts = variational.parts(terms.log_px.mean(1), terms.kl.sum(1))
    return {**parts, 'loss': parts['negative_elbo_nats']}


def find_alarms(split: str, metrics: Mapping[str, float]) -> list[str]:
    """Return the alarms of a line of metrics; those of evaluations have no weight."""
    return alarms.of_latents(metrics) if split == 'train' else []


def encode(
    s: Setting, state: TrainState, image: jax.Array, rngs: jax.Array
) -> jax.Array:
    """Return the means [B, Z] of q(z|x)."""
    return observe(s, state.eval_variables, image, rngs)[1].mean


def decode(s: Setting, state: TrainState, z: jax.Array) -> jax.Array:
    """Decode z [N, Z] to samples of p(x|z), uint8 [N, H, W, C].

    Their pixels have the same noise for every z, so images differ by their codes alone.
    """
    rng = derive(stream(s.config.seed, Stream.SAMPLE), Use.DRAW)
    return draw_pixels(s, state, z, jnp.repeat(noise(s, rng[None]), len(z), axis=0))


def noise(s: Setting, rngs: jax.Array) -> jax.Array:
    """Draw what decides the pixels of images with keys [B], [B, H, W, C]."""
    num = s.decoder.model.distribution.num_noise
    return samplers.noise(rngs, s.data.image_shape, num)


def draw_pixels(
    s: Setting, state: TrainState, z: jax.Array, uniform: jax.Array
) -> jax.Array:
    """Return the images [N, H, W, C] uint8 that noise draws from p(x|z)."""
    x = jnp.zeros((len(z), *s.data.image_shape), jnp.int32)
    drawn = s.decoder.generate(state.eval_variables, x, x > 0, uniform, z)
    return jnp.asarray(generation.levels(s.decoder))[drawn]


def pictures(
    s: Setting, state: TrainState, batch: HostBatch, rng: jax.Array
) -> Pictures:
    """Draw what z says of an image and what it leaves to the pixels.

    Each row of `redrawn` keeps the z of one image and changes the noise of the pixels.
    Each row of `interpolations` keeps the noise and moves z to the code of the next
    test image.
    """
    rows, draws, steps = np.arange(8) % len(batch['index']), 6, 9
    rngs = fold_in_each(rng, batch['index'][rows])
    x, q = jax.jit(functools.partial(observe, s))(
        state.eval_variables, batch['image'][rows], rngs
    )
    draw = jax.jit(functools.partial(draw_pixels, s))
    truth = generation.levels(s.decoder)[np.asarray(x)]

    each = noise(s, derive(fold_in_each(rng, np.arange(draws)), Use.DRAW))
    redrawn = draw(
        state, jnp.repeat(q.mean, draws, axis=0), jnp.tile(each, (len(rows), 1, 1, 1))
    )
    redrawn = np.asarray(redrawn).reshape(len(rows), draws, *truth.shape[1:])
    redrawn = np.concatenate([truth[:, None], redrawn], axis=1)

    between = latent.interpolate(q.mean, jnp.roll(q.mean, -1, axis=0), steps)
    codes = jnp.swapaxes(between, 0, 1).reshape(-1, q.mean.shape[1])
    moved = np.asarray(draw(state, codes, jnp.repeat(each[:1], len(codes), axis=0)))
    names = [str(row) for row in rows]
    return {
        'redrawn': plotting.with_axes(
            plotting.image_grid(
                redrawn.reshape(-1, *truth.shape[1:]), columns=1 + draws
            ),
            rows=names, columns=['x', *(f'draw {n + 1}' for n in range(draws))],
            ylabel='row of the test split',
            title='p(x|z): z of the image, other noise',
        ),
        'interpolations': plotting.with_axes(
            plotting.image_grid(moved, columns=steps), rows=names,
            columns=[f'{n / (steps - 1):.2f}' for n in range(steps)],
            xlabel='share of the way to the z of the next row',
            ylabel='row of the test split',
            title='p(x|z): the same noise, z moves',
        ),
    }


main = command.Command('pixel_vae', __doc__, Config, PRESETS, build)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
