"""What the experiments of flows share: likelihood, samples, codes and pictures.

A flow z = f(y) has the density log p(y) = log p(z) + log |det dz / dy|. Images are
integers: y = (x + v) / V, with noise v in [0, 1), either uniform or drawn from a small
flow q(v|x) that is trained jointly with f. The noise is a latent variable, so training
maximises a bound on log P(x), and the final evaluation estimates log P(x) itself by the
mean of S importance weights:

    log w = log p(y) - D log V - log q(v|x)       E[log w] <= log E[w] = log P(x)

A flow supplies its network and its prior:

    build(config, data, Flow(module, log_prior, draw_prior, heavy=True))
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gm_jax import plotting
from gm_jax.data import binarize, image_set
from gm_jax.data.image_set import ImageSet
from gm_jax.evaluation import likelihood
from gm_jax.families import attributes, classifier, density, scores, setting
from gm_jax.families.classifier import Trained
from gm_jax.families.density import Density, Mode
from gm_jax.keys import Use, derive, fold_in_each
from gm_jax.losses import dequantization, likelihoods
from gm_jax.models.dequantizer import Dequantizer
from gm_jax.sampling import latent
from gm_jax.training import settings
from gm_jax.training.contracts import Codes, Experiment, HostBatch, Pictures, Say
from gm_jax.training.settings import MOST_LAYERS, MOST_UNITS, field
from gm_jax.training.train_state import Batch, Metrics, ModelState, TrainState

__all__ = ['build', 'Config', 'Flow', 'from_logistic', 'from_normal', 'Setting']

# The numbers of importance samples among which an evaluation chooses.
_TEST_SAMPLES = (128, 64, 32, 16, 8, 4, 2, 1)
# Test images for arithmetic on codes.
_POPULATION = 2_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(settings.Config):
    """Settings of every flow."""

    dequantization: str = field(
        'uniform', 'noise that fills the gaps between the values of pixels: uniform, '
        'or from a small flow that is trained too', choices=('uniform', 'variational'),
    )
    noise_couplings: int = field(
        4, 'couplings of the flow of --dequantization=variational', low=1,
        high=MOST_LAYERS,
    )
    noise_features: int = field(
        16, 'feature maps of its networks', low=1, high=MOST_UNITS
    )
    test_samples: int = field(
        0, 'importance samples per image in the final evaluation; 0: up to 128, as '
        'many as take ten minutes or a tenth of the time of training', low=0, free=True,
    )
    temperature: float = field(
        1.0, 'factor by which z is multiplied when images are generated; below 1, '
        'images are closer to the mode', low=0.0, free=True,
    )
    classifier: str = field(
        '', 'work directory of the experiment `classifier` on the same set, which '
        'evaluates arithmetic on codes; empty: no arithmetic', evaluation_only=True,
    )

    @property
    def without_effect(self) -> dict[str, str]:
        """The settings that change nothing beside the others, and why, by name."""
        found = super().without_effect
        if self.dequantization == 'uniform':
            for name in ('noise_couplings', 'noise_features'):
                found[name] = 'needs --dequantization=variational'
        return found


class Flow(NamedTuple):
    """A flow and its prior.

    Attributes:
        module: f: y [B, H, W, C] in [0, 1] -> z [B, D] and log |det dz / dy| [B], with
            a method `inverse`. It is initialised by a first batch.
        log_prior: z -> log p(z) [B] in nats.
        draw_prior: (keys [B], D) -> z [B, D].
        heavy: whether it has convolutions, so that on a CPU each step is dispatched
            alone.
    """

    module: nn.Module
    log_prior: Callable[[jax.Array], jax.Array]
    draw_prior: Callable[[jax.Array, int], jax.Array]
    heavy: bool


class Setting(NamedTuple):
    """What the functions of one experiment have in common.

    Attributes:
        config: the settings.
        data: the image set.
        flow: the flow of y.
        noise: the flow of the noise; None for uniform noise.
    """

    config: Config
    data: ImageSet
    flow: Flow
    noise: Dequantizer | None

    @property
    def num_values(self) -> int:
        """V, the number of values of a pixel that the model sees."""
        return binarize.num_values(self.data)

    @property
    def num_dims(self) -> int:
        """D, the number of values of an image."""
        return math.prod(self.data.image_shape)


def from_normal(module: nn.Module, *, heavy: bool) -> Flow:
    """Return a flow with the prior N(0, I); see `Flow` for the arguments."""
    def log_prior(z: jax.Array) -> jax.Array:
        zeros = jnp.zeros_like(z)
        return likelihoods.gaussian_log_prob(zeros, zeros, z)

    return Flow(module, log_prior, latent.prior_sample, heavy)


def from_logistic(module: nn.Module, *, heavy: bool) -> Flow:
    """Return a flow with a standard logistic prior; see `Flow` for the arguments."""
    def log_prior(z: jax.Array) -> jax.Array:
        zeros = jnp.zeros_like(z)
        return likelihoods.logistic_log_prob(zeros, zeros, z)

    def draw_prior(rngs: jax.Array, num: int) -> jax.Array:
        zeros = jnp.zeros((len(rngs), num))
        return likelihoods.logistic_sample(rngs, zeros, zeros)

    return Flow(module, log_prior, draw_prior, heavy)


def build(config: Config, data: ImageSet, flow: Flow) -> Experiment:
    """Make the experiment of a flow.

    Args:
        config: the settings.
        data: the image set.
        flow: the flow of the pixels.

    Raises:
        UserError: --classifier is not the work directory of a classifier of this set.
    """
    noise = None
    if config.dequantization == 'variational':
        noise = Dequantizer(
            data.image_shape, binarize.num_values(data), config.noise_couplings,
            config.noise_features, dtype=jnp.dtype(config.dtype),
        )
    s = Setting(config, data, flow, noise)
    trained = classifier.load_if_given(config.classifier, data)
    experiment = density.build(
        config,
        _density(s),
        sample=functools.partial(_sample, s),
        sampler='z from the prior, inverted in one pass',
        pictures=functools.partial(_pictures, s),
        single_steps=flow.heavy or noise is not None,
    )
    return experiment._replace(
        codes=Codes(
            functools.partial(_encode, s), functools.partial(_decode, s),
            functools.partial(_encode, s), s.num_dims,
        ),
        finish=functools.partial(_finish, s, trained) if trained else None,
    )


def _density(s: Setting) -> Density[jax.Array]:
    chosen = s.config.test_samples
    return Density(
        init=functools.partial(_init, s),
        terms=functools.partial(_log_w, s),
        loss=functools.partial(_loss, s),
        numbers=functools.partial(_numbers, s),
        estimates=lambda log_w: {'log_w': log_w},
        report=functools.partial(_report, s),
        num_chunks=chosen or _TEST_SAMPLES[0],
        fewer_chunks=() if chosen else _TEST_SAMPLES[1:],
        log_prob='log_w',
    )


def _init(s: Setting, rng: jax.Array) -> dict[str, Any]:
    """Make the variables; normalisations get the moments of a first batch."""
    x, _ = setting.first_batch(s.data, rng)
    weights = derive(rng, Use.WEIGHTS)
    rngs = derive(fold_in_each(rng, jnp.arange(len(x))), Use.DEQUANTIZATION)
    y = dequantization.uniform(rngs, x, num_values=s.num_values)
    params = {'flow': s.flow.module.init(derive(weights, Use.LATENT), y)['params']}
    if s.noise is not None:
        found = s.noise.init(derive(weights, Use.NOISE), y[:1], x[:1])
        params['noise'] = found['params']
    return {'params': params}


def _log_w(
    s: Setting, variables: dict[str, Any], batch: Batch, rngs: jax.Array, mode: Mode
) -> tuple[jax.Array, ModelState]:
    """Compute log w [B], with noise of its own in each chunk; see `density.TermsFn`."""
    x = binarize.integers(derive(rngs, Use.PIXELS), batch['image'], s.data)
    noise_rngs = derive(fold_in_each(rngs, mode.chunk), Use.DEQUANTIZATION)
    params, log_q = variables['params'], jnp.zeros(len(x))
    if s.noise is None:
        y = dequantization.uniform(noise_rngs, x, num_values=s.num_values)
    else:
        learned = functools.partial(s.noise.apply, {'params': params['noise']}, x=x)
        y, log_q = dequantization.variational(
            noise_rngs, x, learned, num_values=s.num_values
        )
    z, log_det = s.flow.module.apply({'params': params['flow']}, y)
    log_density = s.flow.log_prior(z) + log_det - log_q
    return dequantization.log_prob(
        log_density, s.num_dims, num_values=s.num_values
    ), {}


def _loss(s: Setting, log_w: jax.Array, mode: Mode) -> tuple[jax.Array, Metrics]:
    """Compute minus the bound, averaged over the batch."""
    del mode
    numbers = jax.tree.map(jnp.mean, _numbers(s, log_w))
    return numbers.pop('loss'), numbers


def _numbers(s: Setting, log_w: jax.Array) -> dict[str, jax.Array]:
    """Return the numbers [B] of an evaluation during training."""
    return {
        'loss': -log_w, 'bound_nats_per_image': -log_w,
        'bound_bits_per_dim': likelihoods.bits_per_dim(log_w, s.num_dims),
    }


def _report(s: Setting, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the numbers of results.json: the estimate of log P(x), and the bound."""
    log_w = arrays['log_w']
    num_samples = log_w.shape[1]
    estimate = likelihood.report(
        likelihood.combine(log_w), s.num_dims, f'iwae-{num_samples}'
    )
    bound = likelihood.report(
        log_w.mean(axis=1, dtype=np.float64), s.num_dims, 'elbo'
    )
    return {
        **estimate, 'importance_samples': num_samples,
        'bound_nats_per_image': bound['nats_per_image'],
        'bound_bits_per_dim': bound['bits_per_dim'],
    }


def _sample(
    s: Setting, state: TrainState, rngs: jax.Array, index: jax.Array
) -> jax.Array:
    """Draw z from the prior, times the temperature, and invert the flow."""
    del index
    z = s.flow.draw_prior(derive(rngs, Use.LATENT), s.num_dims)
    return _decode(s, state, s.config.temperature * z)


def _encode(
    s: Setting, state: TrainState, image: jax.Array, rngs: jax.Array
) -> jax.Array:
    """Return z [B, D] of images; see `_code`."""
    x = binarize.integers(derive(rngs, Use.PIXELS), image, s.data)
    return _code(s, state, x)


def _code(s: Setting, state: TrainState, x: jax.Array) -> jax.Array:
    """Return z [B, D] of the middle of each value, which decodes to x [B, H, W, C]."""
    y = (x + 0.5) / s.num_values
    z, _ = s.flow.module.apply({'params': state.eval_params['flow']}, y)
    return z


def _decode(s: Setting, state: TrainState, z: jax.Array) -> jax.Array:
    """Invert the flow at z [N, D], and round y down: uint8 levels [N, H, W, C]."""
    variables = {'params': state.eval_params['flow']}
    y, _ = s.flow.module.apply(variables, z, method='inverse')
    x = jnp.clip(jnp.floor(y * s.num_values), 0, s.num_values - 1)
    return jnp.round(255 * x / (s.num_values - 1)).astype(jnp.uint8)


def _pictures(
    s: Setting, state: TrainState, batch: HostBatch, rng: jax.Array
) -> Pictures:
    """Draw what lies between pairs of test images, along arcs between their codes."""
    encode, decode = (jax.jit(functools.partial(f, s)) for f in (_encode, _decode))
    rngs = fold_in_each(rng, batch['index'][:16])
    z = encode(state, batch['image'][:16], rngs)
    rows = np.arange(16) % len(z)  # a small set has fewer images
    arcs = latent.interpolate(z[rows[:8]], z[rows[8:]], 9, spherical=True)
    arcs = arcs.swapaxes(0, 1)
    between = decode(state, arcs.reshape(-1, s.num_dims))
    return {'interpolations': plotting.interpolations(np.asarray(between), 9, 'code')}


def _finish(
    s: Setting, trained: Trained, state: TrainState, seed: int, say: Say
) -> tuple[dict[str, Any], Pictures]:
    """Do arithmetic on the codes of test images; see `attributes.compare`."""
    del seed, say  # nothing is drawn
    test = s.data.splits['test']
    rows = image_set.spread(len(test), _POPULATION)
    levels = scores.as_seen(test, rows, s.data)
    x = np.round(levels / 255 * (s.num_values - 1)).astype(np.int32)
    code, invert = (jax.jit(functools.partial(f, s)) for f in (_code, _decode))

    def decode(z: jax.Array, label: np.ndarray) -> np.ndarray:
        del label  # z holds all that the image is
        return np.asarray(invert(state, z))

    numbers, pictures = attributes.compare(
        code(state, x), decode, trained.classify, s.data.num_classes
    )
    return {**numbers, 'judged_by': trained.name}, pictures
