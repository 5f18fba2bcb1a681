r"""What the experiments with Boltzmann machines share, whatever their layers.

Each machine is an RBM between two sets of units, u and h, where u begins with the
visible units v:

    infer     v -> (v, q) and an entropy: log p(v) >= -F(v, q) + entropy - log Z
    loss      mean F(v, q) - mean F(u), u the ends of Gibbs chains
    log Z     once for an evaluation: by enumeration or by annealed importance sampling

Chain i belongs to example i of a batch: it takes the key of that example, runs on its
device, and its end is kept for the next step. So there are as many chains as examples
of a batch, and they are the same on any number of devices.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax import plotting
from gm_jax.data import binarize, pipeline
from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.evaluation import ais, likelihood
from gm_jax.families import chains
from gm_jax.families.chains import Clamped
from gm_jax.keys import Use, derive, fold_in_each
from gm_jax.layers.pixels import to_uint8
from gm_jax.losses import energy, likelihoods
from gm_jax.losses.energy import RBM
from gm_jax.sampling.gibbs import gibbs, uniforms
from gm_jax.training import optimizer, train_state
from gm_jax.training.contracts import (
    ByExample,
    Codes,
    Experiment,
    HostBatch,
    Pictures,
)
from gm_jax.training.settings import field
from gm_jax.training.train_state import (
    Batch,
    LossOutput,
    ModelState,
    Params,
    TrainState,
    make_train_step,
)

__all__ = ['build', 'Config', 'log_odds', 'Machine', 'MOST_EXACT']

# Up to this many units on one side, log Z is computed by enumeration.
MOST_EXACT = 20
# Temperatures of the estimates of log Z during training, which choose the best
# checkpoint only.
_SHORT = 1000
# The share of its value that an offset moves towards a batch's mean.
_OFFSET_RATE = 0.01
# s in p' = (p + s / 2) / (1 + s), which smooths the base model's probabilities.
_SMOOTHING = 0.1
_INEXACT = (
    'the rest is drawn by Gibbs steps that keep what is given. They are samples '
    'conditioned on all given pixels as far as the chain has forgotten its start '
    '(--gibbs_steps).'
)
_FRAMES = 12  # of the film of a chain
_FILTERS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(chains.Config):
    """Settings of every Boltzmann machine."""

    binarize: str = field(
        'threshold', 'make pixels 0 or 1: one fixed draw (static), a fresh draw at '
        'each step (dynamic), or x >= V/2 (threshold); none for bits',
        choices=binarize.WAYS,
    )
    num_steps: int = field(3000, 'training steps', low=1)
    batch_size: int = field(
        100, 'examples per step, and Gibbs chains, over all devices of all processes',
        low=1,
    )
    eval_every: int = field(1000, 'steps between evaluations', low=1, free=True)
    checkpoint_every: int = field(
        1000, 'steps between checkpoints', low=1, free=True
    )
    learning_rate: float = field(0.05, 'first learning rate', low=0.0)
    schedule: str = field(
        'linear', 'learning rate over the run: constant, cosine or linear to zero, or '
        'the eight stages of Burda et al. 2016 (1e-3 to 1e-4, stage i lasting 3^i)',
        choices=('constant', 'cosine', 'linear', 'stages'),
    )
    optimizer: str = field(
        'sgd', 'adam; muon for kernels and adam for all other parameters; or sgd, '
        'steps along the gradient', choices=('adam', 'muon', 'sgd'),
    )
    weight_decay: float = field(
        1e-4, 'each step shrinks kernels by the share learning_rate * weight_decay',
        low=0.0,
    )
    dtype: str = field('float32', 'dtype of the machine', choices=('float32',))
    ema: float = field(
        0.999, 'decay of the parameter average that evaluation uses; 0: none',
        low=0.0, high=1.0,
    )
    k: int = field(1, 'Gibbs steps per training step', low=1, high=10_000)
    centered: bool = field(
        True, 'follow the gradient of the centered parametrisation, whose offsets are '
        'running averages of the units'
    )
    gibbs_steps: int = field(
        1000, 'Gibbs steps behind each sample', low=1, high=10**7, free=True
    )
    ais_chains: int = field(
        100, 'chains of the estimate of log Z', low=2, high=100_000, free=True
    )
    ais_temperatures: int = field(
        10_000, 'temperatures of the estimate of log Z at the end', low=1,
        high=10**7, free=True,
    )
    ais_sweeps: int = field(
        3000, 'Gibbs steps that the chains of training take before they serve as '
        'samples for the upper end of the bracket of log Z', low=0, high=10**7,
        free=True,
    )


class Machine(NamedTuple):
    """A Boltzmann machine, as functions of its parameters.

    Attributes:
        init: (key, biases [D] of the visible units) -> the parameters, a dict.
        rbm: the parameters -> the machine as an RBM of U units u, the first D of which
            are the pixels, and H units h.
        infer: (parameters, v [B, D], whether this is training) -> u [B, U] bits or
            probabilities given v, and the entropy [B] of those that are probabilities.
        num_hidden: H.
        persistent: whether chains go on where they ended, or start from the data.
        bound: whether the likelihood is a bound, since u is not v alone.
        pretrained: () -> variables to begin with; see `contracts.Experiment`.
    """

    init: Callable[[jax.Array, jax.Array], Params]
    rbm: Callable[[Params], RBM]
    infer: Callable[[Params, jax.Array, bool], tuple[jax.Array, jax.Array]]
    num_hidden: int
    persistent: bool
    bound: bool
    pretrained: Callable[[], dict[str, Any]] | None = None


class _Setting(NamedTuple):
    """What the functions of an experiment have in common."""

    config: Config
    data: ImageSet
    machine: Machine

    @property
    def num_dims(self) -> int:
        """D."""
        return math.prod(self.data.image_shape)

    def rbm(self, state: TrainState) -> RBM:
        """Return the machine that is evaluated."""
        return self.machine.rbm(state.eval_params)

    def pixels(self, image: jax.Array | np.ndarray, rngs: jax.Array) -> jax.Array:
        """Return bits [B, D] float32."""
        x = binarize.integers(derive(rngs, Use.PIXELS), image, self.data)
        return x.reshape(len(x), -1).astype(jnp.float32)

    def images(self, v: jax.Array) -> jax.Array:
        """Return [B, H, W, C] uint8 of the pixels of u [B, U] in [0, 1]."""
        return to_uint8(v[:, :self.num_dims].reshape(-1, *self.data.image_shape))


def build(config: Config, data: ImageSet, machine: Machine) -> Experiment:
    """Make the experiment of a machine.

    Args:
        config: the settings.
        data: the image set.
        machine: the functions of the machine.

    Raises:
        UserError: the pixels are not bits.
    """
    if binarize.num_values(data) != 2:
        raise UserError(
            f'a Boltzmann machine models bits, and {data.name} has {data.num_values} '
            f'values: pass --binarize=static, dynamic or threshold.'
        )
    s = _Setting(config, data, machine)
    samplers = chains.samplers(config, data, functools.partial(_sample, s), _INEXACT)
    return Experiment(
        init=functools.partial(_init, s),
        pretrained=machine.pretrained,
        train_step=make_train_step(functools.partial(_loss, s), ema_decay=config.ema),
        evaluation=ByExample(
            functools.partial(_eval_step, s), functools.partial(_test_step, s),
            functools.partial(_summarize, s), log_prob='log_px',
            shared=functools.partial(_log_partition, s),
        ),
        sample=samplers.sample,
        sampler=f'{config.gibbs_steps} block Gibbs steps from the base rates',
        given=samplers.given,
        complete=samplers.complete,
        codes=Codes(
            functools.partial(_encode, s), functools.partial(_decode, s),
            functools.partial(_encode, s), machine.num_hidden,
        ),
        pictures=functools.partial(_pictures, s),
        single_steps=False,
        loss_unit='nats',
    )


def log_odds(probability: jax.Array) -> jax.Array:
    """Return the log-odds of smoothed probabilities, which are finite at 0 and 1.

    They are those of p' = (p + s/2) / (1 + s) with s = 0.1.

    Args:
        probability: p, of any shape, in [0, 1].

    Returns:
        log p' - log(1 - p'), of the same shape.
    """
    p = (probability + _SMOOTHING / 2) / (1 + _SMOOTHING)
    return jnp.log(p) - jnp.log1p(-p)


def _init(s: _Setting, rng: jax.Array) -> TrainState:
    images = pipeline.first_images(s.data, 10_000)
    means = images.reshape(len(images), -1).mean(axis=0, dtype=np.float64)
    mean = jnp.asarray(means / (s.data.num_values - 1), jnp.float32)
    params = s.machine.init(derive(rng, Use.WEIGHTS), log_odds(mean))
    num_visible, num_hidden = s.machine.rbm(params).weights.shape
    mean = jnp.concatenate([mean, jnp.full(num_visible - len(mean), 0.5)])
    rngs = fold_in_each(derive(rng, Use.START), jnp.arange(s.config.batch_size))
    u = uniforms(rngs, num_visible)
    return train_state.create(
        params, optimizer.make(s.config), ema=s.config.ema > 0, model_state={
            'chains': (u < mean[None]).astype(jnp.float32),
            'offsets': {'visible': mean, 'hidden': jnp.full(num_hidden, 0.5)},
        },
    )


def _loss(
    s: _Setting, params: Params, model_state: ModelState, batch: Batch,
    rngs: jax.Array, *, step: jax.Array, axis_name: str | None,
) -> LossOutput:
    """Compute the contrastive divergence; see `train_state.LossFn`."""
    del step
    v, index = s.pixels(batch['image'], rngs), batch['index']
    fixed = jax.lax.stop_gradient(params)
    rbm, fixed_rbm = s.machine.rbm(params), s.machine.rbm(fixed)
    u, _ = s.machine.infer(fixed, v, True)
    ends, offsets = model_state['chains'], model_state['offsets']
    start = ends[index] if s.machine.persistent else _bits(rngs, u)
    end = gibbs(derive(rngs, Use.CHAIN), fixed_rbm, start, s.config.k)
    if s.config.centered:
        rbm = energy.centered(rbm, offsets['visible'], offsets['hidden'])
    loss = energy.contrastive_divergence(rbm, u, end)
    means = {
        'visible': u.mean(axis=0),
        'hidden': jax.nn.sigmoid(energy.hidden_logits(fixed_rbm, u)).mean(axis=0),
    }
    if axis_name is not None:
        means = jax.lax.pmean(means, axis_name)
        index, end = jax.lax.all_gather((index, end), axis_name, tiled=True)
    offsets = jax.tree.map(lambda a, b: a + _OFFSET_RATE * (b - a), offsets, means)
    ends = ends.at[index].set(end)
    return LossOutput(loss, {}, {'chains': ends, 'offsets': offsets})


def _bits(rngs: jax.Array, u: jax.Array) -> jax.Array:
    """Draw bits of probabilities u [B, U]; bits stay as they are."""
    drawn = uniforms(derive(rngs, Use.START), u.shape[1])
    return (drawn < u).astype(u.dtype)


def _base(state: TrainState) -> jax.Array:
    """Return the biases [U] of the base model."""
    return log_odds(state.model_state['offsets']['visible'])


def _log_partition(
    s: _Setting, state: TrainState, rng: jax.Array, final: bool
) -> dict[str, jax.Array]:
    """Compute log Z; see `contracts.Shared`."""
    rbm, base = s.rbm(state), _base(state)
    if min(rbm.weights.shape) <= MOST_EXACT:
        return {'log_partition': energy.log_partition_exact(rbm)}
    num_chains, most = s.config.ais_chains, s.config.ais_temperatures
    rng = derive(rng, Use.PARTITION)
    forward = ais.ais_log_partition(
        rng, rbm, base_visible_bias=base, num_chains=num_chains,
        num_temperatures=most if final else min(_SHORT, most),
    )
    if not final:
        return {'log_partition': forward.log_z}
    ends, rng = state.model_state['chains'], derive(rng, Use.REVERSE)
    start = ends[jnp.arange(num_chains) % len(ends)]
    samples = gibbs(derive(rng, Use.CHAIN), rbm, start, s.config.ais_sweeps)
    reverse = ais.reverse_ais_log_partition(
        rng, rbm, samples, base_visible_bias=base, num_temperatures=most
    )
    return {
        'log_partition': forward.log_z,
        'log_partition_standard_error': forward.standard_error,
        'log_partition_low': forward.log_weights.mean(),
        'log_partition_high': reverse.log_weights.mean(),
        'effective_sample_size': forward.effective_sample_size,
        'log_weights_deviation': forward.log_weights.std(),
    }


def _log_prob(
    s: _Setting, state: TrainState, batch: Batch, rng: jax.Array
) -> jax.Array:
    """Compute log p(v) or the bound on it [B], with the log Z of the evaluation."""
    v = s.pixels(batch['image'], fold_in_each(rng, batch['index']))
    u, entropy = s.machine.infer(state.eval_params, v, False)
    log_z = state.model_state['shared']['log_partition']
    return entropy - energy.free_energy(s.rbm(state), u) - log_z


def _test_step(
    s: _Setting, state: TrainState, batch: Batch, rng: jax.Array
) -> dict[str, jax.Array]:
    return {'log_px': _log_prob(s, state, batch, rng)}


def _eval_step(
    s: _Setting, state: TrainState, batch: Batch, rng: jax.Array
) -> dict[str, jax.Array]:
    log_px = _log_prob(s, state, batch, rng)
    if min(s.rbm(state).weights.shape) > MOST_EXACT:
        # Under another name, since a short estimate of log Z makes the model look
        # better than it is.
        return {'loss': -log_px, 'short_ais_nats': -log_px}
    bits = likelihoods.bits_per_dim(log_px, s.num_dims)
    return {'loss': -log_px, 'nats_per_image': -log_px, 'bits_per_dim': bits}


def _summarize(s: _Setting, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the numbers of results.json; see `contracts.Summarize`."""
    log_px = likelihood.combine(arrays['log_px'])
    if 'log_partition_low' not in arrays:
        estimator = 'elbo' if s.machine.bound else 'exact'
        return likelihood.report(log_px, s.num_dims, estimator)
    estimator = 'ais-elbo' if s.machine.bound else 'ais'
    found: dict[str, Any] = likelihood.report(log_px, s.num_dims, estimator)
    log_z = arrays['log_partition']
    ends = [float(arrays[f'log_partition_{end}'] - log_z) for end in ('low', 'high')]
    nats = found['nats_per_image']
    return {
        **found, 'ais_temperatures': s.config.ais_temperatures,
        'ais_chains': s.config.ais_chains,
        'nats_bracket': [nats + end for end in ends],
        'alarms': ais.warnings(
            float(arrays['effective_sample_size']),
            float(arrays['log_weights_deviation']), s.config.ais_chains,
        ),
    }


def _sample(
    s: _Setting, state: TrainState, rngs: jax.Array, kept: Clamped | None
) -> jax.Array:
    """Draw images by long chains from the base rates; see `chains.Draw`."""
    mean = jax.nn.sigmoid(_base(state))[None]
    start, known = _bits(rngs, jnp.broadcast_to(mean, (len(rngs), mean.shape[1]))), None
    if kept is not None:
        more = (0, 0), (0, mean.shape[1] - s.num_dims)  # of u nothing but v is known
        known = jnp.pad(kept.known, more)
        start = jnp.where(known, jnp.pad(kept.x, more), start)
    return s.images(gibbs(
        derive(rngs, Use.CHAIN), s.rbm(state), start, s.config.gibbs_steps, known=known
    ))


def _encode(
    s: _Setting, state: TrainState, image: jax.Array, rngs: jax.Array
) -> jax.Array:
    """Return the probabilities [B, H] of h given an image."""
    u, _ = s.machine.infer(state.eval_params, s.pixels(image, rngs), False)
    return jax.nn.sigmoid(energy.hidden_logits(s.rbm(state), u))


def _decode(s: _Setting, state: TrainState, h: jax.Array) -> jax.Array:
    """Return the probabilities of the pixels given h [B, H], as images."""
    return s.images(jax.nn.sigmoid(energy.visible_logits(s.rbm(state), h)))


def _pictures(
    s: _Setting, state: TrainState, batch: HostBatch, rng: jax.Array
) -> Pictures:
    """Draw the filters, films of chains, and completions."""
    shape, num = s.data.image_shape, min(10, len(batch['index']))
    weights = np.asarray(s.rbm(state).weights)[:s.num_dims]
    order = np.argsort(-np.square(weights).sum(axis=0))[:_FILTERS]
    filters = weights.T[order].reshape(-1, *shape)
    scale = 2 * np.abs(filters).max(axis=(1, 2, 3), keepdims=True) + 1e-12
    return {
        'filters': plotting.image_grid(0.5 + filters / scale),
        'chains': _films(s, state, batch['image'][:num], rng),
        'completions': _completions(s, state, batch['image'][:num], rng),
    }


def _films(
    s: _Setting, state: TrainState, images: np.ndarray, rng: jax.Array
) -> np.ndarray:
    """Draw one row per chain that starts at an image, and its frames."""
    every = max(s.config.gibbs_steps // (_FRAMES - 1), 1)
    rngs = fold_in_each(derive(rng, Use.REAL), jnp.arange(len(images)))

    def film(state: TrainState, images: jax.Array) -> jax.Array:
        def frame(u: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
            chain_rngs = fold_in_each(derive(rngs, Use.CHAIN), number)
            return gibbs(chain_rngs, s.rbm(state), u, every), s.images(u)

        u, _ = s.machine.infer(state.eval_params, s.pixels(images, rngs), False)
        _, frames = jax.lax.scan(frame, _bits(rngs, u), jnp.arange(_FRAMES))
        return frames.swapaxes(0, 1)  # [N, frames, H, W, C]

    return chains.film(
        np.asarray(jax.jit(film)(state, images)),
        columns=[str(every * number) for number in range(_FRAMES)],
        xlabel='Gibbs steps', title='Chains that start at images',
    )


def _completions(
    s: _Setting, state: TrainState, images: np.ndarray, rng: jax.Array
) -> np.ndarray:
    """Draw one row per image: its upper half, three completions of it and the image."""
    shape, num = s.data.image_shape, len(images)
    rngs = fold_in_each(derive(rng, Use.FAKE), jnp.arange(num))
    x = np.asarray(s.pixels(images, rngs)).reshape(-1, *shape).astype(np.int32)
    known = np.zeros(shape, bool)
    known[:shape[0] // 2] = True
    kept = Clamped(
        jnp.asarray(x, jnp.float32).reshape(num, -1),
        jnp.asarray(np.broadcast_to(known, x.shape).reshape(num, -1)),
    )
    complete = jax.jit(functools.partial(_sample, s))
    columns = [255 * x * known] + [
        np.asarray(complete(state, fold_in_each(rngs, draw), kept))
        for draw in range(3)
    ] + [255 * x]
    grid = plotting.image_grid(
        np.stack(columns, axis=1).reshape(-1, *shape), columns=len(columns)
    )
    return plotting.with_axes(
        grid, rows=[str(row) for row in range(num)],
        columns=('given', 'sample 1', 'sample 2', 'sample 3', 'truth'),
        ylabel='row of the test split',
        title='Lower halves given the upper ones',
    )
