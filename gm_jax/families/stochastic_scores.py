"""How a generative stochastic network is evaluated.

Binary images have the conservative sampling-based likelihood, as a curve over the
number of states of the chain. All have the speed at which the chain mixes, and Parzen
windows.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax import plotting
from gm_jax.data import pipeline
from gm_jax.data.image_set import Examples
from gm_jax.evaluation import csl, likelihood, mixing, parzen
from gm_jax.families import scores
from gm_jax.families.classifier import Trained
from gm_jax.families.stochastic import Setting, flat, from_start, reconstruct
from gm_jax.keys import Stream, Use, derive, fold_in_each, stream
from gm_jax.training.contracts import ByExample, Pictures, Say
from gm_jax.training.train_state import Batch, TrainState

__all__ = ['finish', 'make_evaluation', 'measure_mixing']

# The states of a chain that test images are compared with at a time, and how many
# chains they come from.
_CHUNK, _CHAINS = 1000, 100
_TEST_SAMPLES = (10_000, 5_000, 2_000, 1_000)
# The steps whose mixing is measured, and the most values of all steps of all chains.
_MIXING_STEPS, _MIXING_VALUES = 1000, 2**24
_LAGS = (1, 10, 100)
# Images that Parzen windows are compared with, and values of them, at most.
_SEEN, _SEEN_VALUES = 60_000, 2**26


def make_evaluation(s: Setting) -> ByExample:
    """Return the evaluation: by the chain if the images are binary."""
    eval_step = functools.partial(_evaluate, s)
    summary = functools.partial(_summarize, s)
    if not s.is_binary:
        return ByExample(eval_step, eval_step, summary)
    size, wanted = math.prod(_chunk_shape(s)), s.config.test_samples
    return ByExample(
        eval_step,
        functools.partial(_test, s),
        summary,
        test_chunks=-(-(wanted or _TEST_SAMPLES[0]) // size),
        fewer_chunks=() if wanted else tuple(n // size for n in _TEST_SAMPLES[1:]),
        chunk_size=size,
        log_prob='log_px',
    )


def _chunk_shape(s: Setting) -> tuple[int, int]:
    """Return how many states of how many chains test images are compared with."""
    num = min(s.config.test_samples or _CHUNK, _CHUNK)
    num_chains = min(num, _CHAINS)
    return -(-num // num_chains), num_chains


def _evaluate(
    s: Setting, state: TrainState, batch: Batch, rng: jax.Array
) -> dict[str, jax.Array]:
    """Compute the loss of each example."""
    rngs = fold_in_each(rng, batch['index'])
    x = flat(s, batch['image'], rngs)
    nats = reconstruct(s, state.eval_variables, x, rngs)
    return {'loss': nats.sum(axis=1), 'denoising_nats': nats[:, 0]}


def _test(
    s: Setting, state: TrainState, batch: Batch, rng: jax.Array
) -> dict[str, jax.Array]:
    """Compare each example with the states of the chains of this chunk."""
    rngs = fold_in_each(rng, batch['index'])
    num, num_chains = _chunk_shape(s)
    # The same chains for all batches of examples.
    chain_rng = fold_in_each(derive(rng, Use.CHAIN), batch['chunk'][0])
    chain_rngs = fold_in_each(chain_rng, jnp.arange(num_chains))
    logits = from_start(s, state.eval_variables, chain_rngs, num)
    x = flat(s, batch['image'], rngs)
    log_px = csl.curve(x, logits.reshape(-1, s.model.num_dims), _curve_sizes(s))
    nats = reconstruct(s, state.eval_variables, x, rngs)
    return {'denoising_nats': nats[:, 0], 'csl': log_px, 'log_px': log_px[:, -1]}


def _curve_sizes(s: Setting) -> tuple[int, ...]:
    """Return the numbers of states below a chunk at which the likelihood is known."""
    most = math.prod(_chunk_shape(s))
    return (*(n for n in (1, 10, 100) if n < most), most)


def _summarize(s: Setting, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the numbers of results.json."""
    numbers = {'denoising_nats': float(arrays['denoising_nats'].mean())}
    if not s.is_binary:
        return numbers
    log_px, sizes = arrays['log_px'], _curve_sizes(s)
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


def finish(
    s: Setting, judge: Trained | None, state: TrainState, seed: int, say: Say
) -> tuple[dict[str, Any], Pictures]:
    """Measure how the chain mixes, and compare its images by Parzen windows."""
    rng = stream(seed, Stream.FINISH)
    numbers = measure_mixing(s, judge, state, derive(rng, Use.CHAIN))
    if not s.config.parzen_samples:
        return numbers, {}
    say('comparing samples by Parzen windows')
    return {**numbers, 'parzen': _compare(s, state, derive(rng, Use.DRAW))}, {}


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
        numbers |= {**mixing.label_scores(labels), 'judged_by': judge.name}
    return numbers


def _compare(s: Setting, state: TrainState, rng: jax.Array) -> dict[str, float]:
    """Compare samples and training images with the test set by Parzen windows."""
    def seen(examples: Examples, *, train: bool) -> np.ndarray:
        most = min(len(examples), _SEEN, _SEEN_VALUES // s.model.num_dims)
        rows = pipeline.example_order(0, 0, most, len(examples))
        x = scores.as_seen(examples, rows, s.data, train=train)
        return x.reshape(most, -1) / 255.0

    num = s.config.parzen_samples
    num_chains = min(num, _CHAINS)
    draw = jax.jit(functools.partial(from_start, s, num=-(-num // num_chains)))
    logits = draw(state.eval_variables, fold_in_each(rng, jnp.arange(num_chains)))
    samples = np.asarray(jax.nn.sigmoid(logits)).reshape(-1, s.model.num_dims)[:num]
    splits = s.data.splits
    return parzen.compare(
        seen(splits['test'], train=False), samples, seen(splits['train'], train=True)
    )
