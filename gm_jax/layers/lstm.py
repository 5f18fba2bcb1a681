"""Convolutional LSTM cells in a loop over the rows or the diagonals of images.

The input-to-state convolution K_is * x is computed beforehand for the whole image; only
the state-to-state convolution K_ss is in the loop:

    h = over_rows(k_is_x, k_ss, outside)       # from the row above
    h = over_diagonals(k_is_x, k_ss, outside)  # from the pixels to the left and above

References:
    van den Oord et al. 2016, Pixel Recurrent Neural Networks, sec. 3.1 and 3.2.
    https://arxiv.org/abs/1601.06759
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    'apart', 'beside', 'cell', 'convolve_states', 'over_diagonals', 'over_rows',
    'skew', 'States', 'unskew',
]


class States(NamedTuple):
    """The states of LSTM cells, of any shape.

    Attributes:
        h: the hidden states, which are the output of the cells.
        c: the cell states.
    """

    h: jax.Array
    c: jax.Array


def cell(gates: Sequence[jax.Array], c: jax.Array) -> States:
    """Compute h and c from c' and the four gates K_ss * h' + K_is * x, of equal shape.

        [o, f, i] = sigmoid(gates 1 to 3)    g = tanh(gate 4)
        c = f c' + i g                       h = o tanh(c)

    A bias of 1 opens the forget gate at first: Jozefowicz et al. 2015, An Empirical
    Exploration of Recurrent Network Architectures.
    """
    o, f, i, g = (gate.astype(c.dtype) for gate in gates)
    c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return States(jax.nn.sigmoid(o) * jnp.tanh(c), c)


def convolve_states(k_ss: jax.Array, *h: jax.Array) -> jax.Array:
    """Compute K_ss * h', [..., 4h], from the taps [K, h, 4h] and h' at each."""
    at_taps = jnp.concatenate(h, axis=-1).astype(k_ss.dtype)
    return at_taps @ k_ss.reshape(-1, k_ss.shape[-1])


def over_rows(k_is_x: jax.Array, k_ss: jax.Array, outside: States) -> jax.Array:
    """Run the cells down the rows.

    Args:
        k_is_x: K_is * x, [B, H, W, 4h].
        k_ss: K_ss, [K, h, 4h]; the K taps are columns of the row above; K is odd.
        outside: h and c [h] outside the image.

    Returns:
        h, [B, H, W, h].

    Raises:
        ValueError: K is even.
    """
    if len(k_ss) % 2 == 0:
        raise ValueError(f'a kernel of {len(k_ss)} columns has no centre')
    taps, (batch, _, width, _) = len(k_ss), k_is_x.shape
    beyond = _columns(outside.h, taps // 2 * batch)

    def around(above: States, inputs: None) -> tuple[list[jax.Array], jax.Array]:
        del inputs
        h = jnp.concatenate([beyond, above.h, beyond], axis=1)
        return [h[:, j * batch:(j + width) * batch] for j in range(taps)], above.c

    return _run(around, k_is_x, k_ss, outside)


def over_diagonals(k_is_x: jax.Array, k_ss: jax.Array, outside: States) -> jax.Array:
    """Run the cells along the diagonals, from the left and from above.

    Args:
        k_is_x: K_is * x, [B, H, W, 4h].
        k_ss: K_ss, [2, h, 4h]; the taps are the pixel above and the one to the left.
        outside: h and c [h] outside the image.

    Returns:
        h, [B, H, W, h].
    """
    batch, height, width, _ = k_is_x.shape
    # Two images side by side give longer diagonals, with less padding at the ends:
    # faster on a CPU. GPUs and TPUs prefer fewer, wider steps.
    images = math.gcd(batch, 2) if jax.default_backend() == 'cpu' else 1
    k_is_x = beside(k_is_x, images)
    strips, length = len(k_is_x), images * width
    # After skewing, column j holds the pixels (r, j - r), and column j - 1 those to the
    # left of and above them. Values in the padding around a row reach no pixel.
    column = np.arange(height + length - 1)[:, None] - np.arange(height)
    first = np.repeat(column % width == 0, strips, axis=1)  # [T, P B], row starts

    def around(
        before: States, first: jax.Array
    ) -> tuple[list[jax.Array], jax.Array]:
        above = _shift(before.h, outside.h, strips)
        left_h, left_c = (
            jnp.where(first, there[:, None], left)
            for there, left in zip(outside, before)
        )
        return [above, left_h], left_c

    columns = skew(k_is_x).swapaxes(1, 2)
    h = _run(around, columns, k_ss, outside, first)
    return apart(unskew(h.swapaxes(1, 2), length), images)


# (the states [h, P B] of the step before, the inputs of this step)
# -> (h' at the taps of K_ss, each [h, P B], c')
_Around = Callable[[States, Any], tuple[list[jax.Array], jax.Array]]


def _run(
    around: _Around, k_is_x: jax.Array, k_ss: jax.Array, outside: States,
    inputs: Any = None,
) -> jax.Array:
    """Run a loop of T steps, each of which computes P cells of every image.

    For speed, features come before positions and every gate is its own array, so the
    innermost axis is long and contiguous (2.3 times as fast on a CPU). Steps are
    rematerialised in the backward pass: less is stored, and it stays in cache.

    Args:
        around: selects what a step needs from the states of the previous step.
        k_is_x: K_is * x, [B, T, P, 4h].
        k_ss: K_ss, [taps, h, 4h].
        outside: h and c [h] before the first step.
        inputs: arrays [T, ...] for `around`, one slice per step.

    Returns:
        h, [B, T, P, h].
    """
    batch, steps, positions, _ = k_is_x.shape
    gates = k_is_x.transpose(1, 3, 2, 0).reshape(steps, -1, positions * batch)
    kernel = k_ss.reshape(-1, k_ss.shape[-1]).T

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(before: States, given: tuple[Any, Any]) -> tuple[States, jax.Array]:
        gates, inputs = given
        taps, c = around(before, inputs)
        state = kernel @ jnp.concatenate(taps).astype(kernel.dtype)
        after = cell(jax.tree.map(jnp.add, gates, jnp.split(state, 4)), c)
        return after, after.h

    start = States(*(_columns(a, positions * batch) for a in outside))
    _, h = jax.lax.scan(step, start, (jnp.split(gates, 4, axis=1), inputs))
    return h.reshape(steps, -1, positions, batch).transpose(3, 0, 2, 1)


def _columns(x: jax.Array, number: int) -> jax.Array:
    return jnp.broadcast_to(x[:, None], (len(x), number))


def _shift(h: jax.Array, outside: jax.Array, by: int) -> jax.Array:
    """Shift [h, N] right by `by` columns, filled with `outside`."""
    return jnp.concatenate([_columns(outside, by), h[:, :-by]], axis=1)


def beside(x: jax.Array, images: int) -> jax.Array:
    """Put images side by side: [B, H, W, F] to [B / images, H, images * W, F]."""
    batch, height, width, features = x.shape
    x = x.reshape(-1, images, height, width, features).swapaxes(1, 2)
    return x.reshape(batch // images, height, images * width, features)


def apart(x: jax.Array, images: int) -> jax.Array:
    """Undo `beside`."""
    batch, height, width, features = x.shape
    x = x.reshape(batch, height, images, -1, features).swapaxes(1, 2)
    return x.reshape(batch * images, height, width // images, features)


def skew(x: jax.Array) -> jax.Array:
    """Shift row r to the right by r: [B, H, W, F] to [B, H, H + W - 1, F]."""
    batch, height, width, features = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, height), (0, 0)))
    # A padded row is one element longer than a row of the result, so row r starts at r.
    x = x.reshape(batch, -1, features)[:, :-height]
    return x.reshape(batch, height, -1, features)


def unskew(x: jax.Array, width: int) -> jax.Array:
    """Undo `skew`: [B, H, H + W - 1, F] to [B, H, W, F]."""
    batch, height, _, features = x.shape
    x = jnp.pad(x.reshape(batch, -1, features), ((0, 0), (0, height), (0, 0)))
    return x.reshape(batch, height, -1, features)[:, :, :width]
