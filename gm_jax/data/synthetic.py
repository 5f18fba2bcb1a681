"""Synthetic sets: distributions whose entropy is known, and a chaotic time series.

`ising` is binary, 8x8: the Ising model on a square grid with free borders,

    p(x) = exp(J sum_{neighbours} s_i s_j) / Z,    s = 2 x - 1.

A row depends on the rows above it only through the last of them, so the rows are a
Markov chain over 2^W states. The transfer matrix gives its transitions exactly, and
these give exact samples and the exact entropy.

`checkers` is 4x4 with 4 values: each of the four 2x2 blocks is a checker of two
different values a, b (a on its diagonal), with all pairs equally likely. Its entropy is
4 log 12 nats. The label is the value a of the first block.

`lorenz` is 1x96 with 256 values: the first coordinate of Lorenz's chaotic system, in
pieces of trajectories; no trajectory is in both splits. What --validation holds out are
pieces of training trajectories. Its entropy is not known.

`grid25` is 1x2 with 256 values: points in the plane from 25 equally likely Gaussians on
a 5x5 grid, so far apart that each point identifies its Gaussian, which is the label.
Its entropy is log 25 plus twice that of one rounded coordinate. The modes that a
generator has lost can be counted (Dumoulin et al. 2017, Adversarially Learned
Inference, sec. 4; Srivastava et al. 2017, VEEGAN, sec. 4.1).
"""

from typing import NamedTuple

import numpy as np
from scipy import special

from gm_jax.data.image_set import ArrayExamples, ImageSet
from gm_jax.errors import UserError

__all__ = [
    'COUPLING', 'entropy', 'ising_chain', 'lorenz', 'make', 'Modes', 'modes',
    'RowChain', 'sample',
]

COUPLING = 0.4
_ISING_SIDE = 8
_SEED = 2016
_LENGTH, _INTERVAL = 96, 0.1  # values per series, time between two values
# Images drawn at a time, by comparisons of float64 [chunk, 2^W].
_CHUNK = 4096


def make(name: str) -> ImageSet:
    """Return a synthetic set: the same images in every run.

    Args:
        name: 'ising', 'checkers', 'lorenz' or 'grid25'.

    Returns:
        The set, in memory, with `entropy` in nats per image where it is known.

    Raises:
        UserError: there is no set of this name.
    """
    sets = {
        'ising': _ising, 'checkers': _checkers, 'lorenz': _lorenz, 'grid25': _grid25,
    }
    if name not in sets:
        raise UserError(f'There is no synthetic:{name}, only {", ".join(sets)}.')
    return sets[name]()


class Modes(NamedTuple):
    """A mixture of equally likely Gaussians of the same width.

    Attributes:
        centres: [K, D] float64, the means of the Gaussians.
        std: the standard deviation of each coordinate.
    """

    centres: np.ndarray
    std: float


_LEVELS = 28.0 + 50.0 * np.arange(5)
_GRID25 = Modes(np.stack(np.meshgrid(_LEVELS, _LEVELS), -1).reshape(25, 2), 2.0)


def modes(data: ImageSet) -> Modes | None:
    """Return the modes of an image set; None if they are not known."""
    known = data.name == 'synthetic:grid25' and data.binarize == 'none'
    return _GRID25 if known else None


class RowChain(NamedTuple):
    """A Markov chain over the rows of a binary image; x_j is bit j of a row's state k.

    Attributes:
        first: [S] probabilities of the first row, S = 2^W.
        transitions: [H - 1, S, S] p(next row | row).
    """

    first: np.ndarray
    transitions: np.ndarray


def ising_chain(height: int, width: int, coupling: float) -> RowChain:
    """Compute the Ising model as a chain of rows, by the transfer matrix.

    With T(a, b) = exp(J sum_j a_j b_j + J sum_j b_j b_j+1) and messages from below
    m_H = 1, m_r = T m_r+1: p(row r+1 = b | row r = a) = T(a, b) m_r+1(b) / m_r(a).

    Args:
        height: H.
        width: W, at most about 10.
        coupling: J.

    Returns:
        The chain, in float64.

    References:
        Kramers and Wannier 1941, Statistics of the Two-Dimensional Ferromagnet.
        https://doi.org/10.1103/PhysRev.60.252
    """
    spins = 2.0 * _bits(width) - 1.0
    within = coupling * np.sum(spins[:, 1:] * spins[:, :-1], axis=1)
    log_transfer = coupling * spins @ spins.T + within
    log_message, transitions = np.zeros(2**width), []
    for _ in range(height - 1):
        joint = log_transfer + log_message
        log_message = special.logsumexp(joint, axis=1)
        transitions.append(np.exp(joint - log_message[:, None]))
    log_first = within + log_message
    first = np.exp(log_first - special.logsumexp(log_first))
    shape = height - 1, 2**width, 2**width
    return RowChain(first, np.array(transitions[::-1]).reshape(shape))


def entropy(chain: RowChain) -> float:
    """Compute H(x) = H(row 1) + sum_r H(row r+1 | row r).

    Args:
        chain: the rows.

    Returns:
        Nats per image.
    """
    total, marginal = np.sum(special.entr(chain.first)), chain.first
    for transition in chain.transitions:
        total += np.sum(marginal[:, None] * special.entr(transition))
        marginal = marginal @ transition
    return float(total)


def sample(chain: RowChain, uniforms: np.ndarray) -> np.ndarray:
    """Draw images row by row: the first state whose cumulative probability exceeds u.

    Args:
        chain: the chain of H rows of W pixels.
        uniforms: [N, H] the numbers u in [0, 1), one per row.

    Returns:
        [N, H, W, 1] uint8.
    """
    num_states = len(chain.first)
    bits = _bits(num_states.bit_length() - 1)
    states = np.empty(uniforms.shape, np.int64)
    tables = [np.broadcast_to(np.cumsum(chain.first), (num_states, num_states))]
    tables += list(np.cumsum(chain.transitions, axis=2))
    for start in range(0, len(uniforms), _CHUNK):
        part = slice(start, start + _CHUNK)
        state = np.zeros(len(uniforms[part]), np.int64)
        for row, table in enumerate(tables):
            passed = table[state] <= uniforms[part, row, None]
            # The last cumulative sum may be rounded to below 1.
            state = np.minimum(passed.sum(axis=1), num_states - 1)
            states[part, row] = state
    return bits[states][..., None].astype(np.uint8)


def lorenz(start: np.ndarray, num: int, interval: float, step: float) -> np.ndarray:
    """Solve x' = 10 (y - x), y' = x (28 - z) - y, z' = x y - 8/3 z.

    The method is the classical Runge-Kutta method of order 4.

    Args:
        start: [3, N] x, y and z at time 0.
        num: T, the number of recorded states; the first is recorded after one interval.
        interval: the time between two records, a multiple of step.
        step: the time step of the integration.

    Returns:
        [T, 3, N], the recorded states.

    References:
        Lorenz 1963, Deterministic Nonperiodic Flow.
        https://doi.org/10.1175/1520-0469(1963)020<0130:DNF>2.0.CO;2
    """
    def slope(state: np.ndarray) -> np.ndarray:
        x, y, z = state
        return np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])

    state, out = start, []
    for _ in range(num):
        for _ in range(round(interval / step)):
            k1 = slope(state)
            k2 = slope(state + step / 2 * k1)
            k3 = slope(state + step / 2 * k2)
            k4 = slope(state + step * k3)
            state = state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        out.append(state)
    return np.stack(out)


def _bits(width: int) -> np.ndarray:
    """Return [2^W, W]: the pixels of each row state."""
    return np.arange(2**width)[:, None] >> np.arange(width) & 1


def _uniforms(num: int, dims: int) -> np.ndarray:
    bits = np.random.Philox(np.random.SeedSequence(_SEED)).random_raw(num * dims)
    return ((bits >> np.uint64(11)) * 2.0**-53).reshape(num, dims)


def _ising() -> ImageSet:
    num_train, num_test = 50_000, 10_000
    chain = ising_chain(_ISING_SIDE, _ISING_SIDE, COUPLING)
    images = sample(chain, _uniforms(num_train + num_test, _ISING_SIDE))
    labels = np.full(len(images), -1, np.int32)
    return ImageSet(
        name='synthetic:ising', image_shape=images.shape[1:], num_values=2,
        num_classes=0, entropy=entropy(chain),
        splits={
            'train': ArrayExamples(images[:num_train], labels[:num_train]),
            'test': ArrayExamples(images[num_train:], labels[num_train:]),
        },
    )


def _checkers() -> ImageSet:
    num_train, num_test, num_values = 1024, 256, 4
    num = num_train + num_test
    pairs = (_uniforms(num, 4) * num_values * (num_values - 1)).astype(np.int64)
    first, second = np.divmod(pairs, num_values - 1)
    second += second >= first  # Skips `first`, so that the two values differ.
    images = np.empty((num, 4, 4, 1), np.uint8)
    for block in range(4):
        top, left = divmod(block, 2)
        corner = images[:, 2 * top:2 * top + 2, 2 * left:2 * left + 2, 0]
        diagonal = np.eye(2, dtype=bool)
        corner[...] = np.where(
            diagonal, first[:, block, None, None], second[:, block, None, None]
        )
    labels = first[:, 0].astype(np.int32)
    return ImageSet(
        name='synthetic:checkers', image_shape=(4, 4, 1), num_values=num_values,
        num_classes=num_values, entropy=4 * float(np.log(12)),
        splits={
            'train': ArrayExamples(images[:num_train], labels[:num_train]),
            'test': ArrayExamples(images[num_train:], labels[num_train:]),
        },
    )


def _lorenz() -> ImageSet:
    num_train, num_test, num_pieces = 10_000, 1_000, 10
    start = 10 * _uniforms((num_train + num_test) // num_pieces, 3).T
    # Trajectories diverge as about exp(0.9 t): by time 40 the starts are forgotten.
    start = lorenz(start, 1, 40.0, 0.02)[0]
    x = lorenz(start, num_pieces * _LENGTH, _INTERVAL, 0.02)[:, 0].T
    levels = np.rint((x + 20) / 40 * 255)  # x lies between -20 and 20
    images = np.clip(levels, 0, 255).astype(np.uint8).reshape(-1, 1, _LENGTH, 1)
    labels = np.full(len(images), -1, np.int32)
    return ImageSet(
        name='synthetic:lorenz', image_shape=images.shape[1:], num_values=256,
        num_classes=0,
        splits={
            'train': ArrayExamples(images[:num_train], labels[:num_train]),
            'test': ArrayExamples(images[num_train:], labels[num_train:]),
        },
    )


def _grid25() -> ImageSet:
    num_train, num_test = 50_000, 10_000
    centres, std = _GRID25
    uniforms = _uniforms(num_train + num_test, 3)
    labels = np.minimum(len(centres) * uniforms[:, 0], len(centres) - 1).astype(int)
    points = centres[labels] + std * special.ndtri(uniforms[:, 1:])
    images = np.clip(np.rint(points), 0, 255).astype(np.uint8).reshape(-1, 1, 2, 1)
    labels = labels.astype(np.int32)
    # The entropy of round(z), z ~ N(0, std^2): level n takes all z within n +- 1/2.
    edges = special.ndtr((np.arange(-30, 32) - 0.5) / std)
    of_coordinate = np.sum(special.entr(np.diff(edges)))
    return ImageSet(
        name='synthetic:grid25', image_shape=(1, 2, 1), num_values=256, num_classes=25,
        entropy=float(np.log(25) + 2 * of_coordinate),
        splits={
            'train': ArrayExamples(images[:num_train], labels[:num_train]),
            'test': ArrayExamples(images[num_train:], labels[num_train:]),
        },
    )
