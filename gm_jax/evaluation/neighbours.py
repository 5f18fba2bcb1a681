"""Exact nearest neighbours by Euclidean distance, in bounded memory.

    index, distance = neighbours.nearest(samples, training_images, k=3)

A matrix product gives all distances at once, ten times as fast as differences do, but
with rounding errors. Where these could decide the result, the few distances that matter
are computed again from differences. So a distance does not depend on the rest of its
block, d(x, y) = d(y, x), equal rows are at distance 0, and ties are exact.
"""

from collections.abc import Iterator

import chex
import numpy as np

__all__ = ['checked', 'count_balls', 'nearest', 'square_distance_blocks']

_BLOCK = 2**22  # Distances at a time: 32 MiB, of which a few copies are needed.


def square_distance_blocks(
    queries: np.ndarray, references: np.ndarray
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield |q_i - r_j|^2 = |q_i|^2 - 2 q_i.r_j + |r_j|^2 for one block of q at a time.

    Args:
        queries: [N, D] q, real numbers of any type.
        references: [M, D] r, with M of 1 or more.

    Yields:
        A slice of n rows of queries; their squared distances [n, M] float64, which may
        be below 0 by rounding and may be overwritten; and a bound on their rounding
        error [n, 1].

    Raises:
        AssertionError: the arrays are not of rank 2, or of different D.
        ValueError: there are no references, or a value is not finite.
    """
    queries, references = checked(queries, references)
    # Vectors from the mean are shorter, which makes rounding errors smaller.
    centre = np.mean(references, axis=0)
    references = references - centre
    lengths = np.sum(np.square(references), axis=1)
    num = max(1, _BLOCK // len(references))
    for start in range(0, len(queries), num):
        rows = slice(start, start + num)
        block = queries[rows] - centre
        block_lengths = np.sum(np.square(block), axis=1, keepdims=True)
        squares = -2 * block @ references.T
        squares += block_lengths
        squares += lengths
        # Twice the bound for sums of D products in any order, so that it also covers
        # the rounding of the same distance when it is computed from differences.
        error = np.square(np.sqrt(block_lengths) + np.sqrt(np.max(lengths)))
        error *= (block.shape[1] + 8) * np.finfo(np.float64).eps
        yield rows, squares, error


def nearest(
    queries: np.ndarray, references: np.ndarray, k: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k references that are nearest to each query.

    A query that is itself among the references is its own nearest, at distance 0.

    Args:
        queries: [N, D] real numbers of any type.
        references: [M, D].
        k: the number of neighbours, from 1 to M.

    Returns:
        index: [N, k] int64 rows of references, the nearest first; ties are ordered by
            index, the lower one first.
        distance: [N, k] float64 (sum_d (q_d - r_d)^2)^(1/2), in the arrays' units.

    Raises:
        AssertionError: the arrays are not of rank 2, or of different D.
        ValueError: k is not in [1, M], or a value is not finite.
    """
    queries, references = checked(queries, references)
    if not 1 <= k <= len(references):
        raise ValueError(f'k must be in [1, {len(references)}], got {k}')
    index = np.empty((len(queries), k), np.int64)
    distance = np.empty((len(queries), k))
    for rows, squares, error in square_distance_blocks(queries, references):
        kth = np.partition(squares, k - 1, axis=1)[:, k - 1:k]
        # All pairs that may be among the k nearest. i ascends, and so does j for each
        # i, so a stable sort puts the lower index first in ties.
        i, j = np.nonzero(squares <= kth + 2 * error)
        candidates = _distances(queries[rows], references, i, j)
        order = np.lexsort((candidates, i))
        first = np.searchsorted(i, np.arange(len(squares)))
        best = order[first[:, None] + np.arange(k)]
        index[rows], distance[rows] = j[best], candidates[best]
    return index, distance


def count_balls(
    points: np.ndarray, centres: np.ndarray, radii: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count the balls that each point lies in.

    Args:
        points: [N, D] real numbers of any type.
        centres: [M, D] centres of the balls.
        radii: [M] float64 radii of the balls, 0 or more, in the units of the arrays.

    Returns:
        closed: [N] int64, the number of j with |point - centre_j| <= radius_j.
        inside: [N] int64, the same with <. They differ only for points on a sphere.

    Raises:
        AssertionError: points and centres are not of rank 2, or of different D; or
            radii is not [M].
        ValueError: there are no balls, or a value is not finite.
    """
    points, centres = checked(points, centres)
    chex.assert_shape(radii, (len(centres),))
    closed, inside = np.empty((2, len(points)), np.int64)
    for rows, squares, error in square_distance_blocks(points, centres):
        i, j = np.nonzero(np.abs(squares - np.square(radii)) <= error)
        distance = np.sqrt(np.maximum(squares, 0, out=squares), out=squares)
        distance[i, j] = _distances(points[rows], centres, i, j)
        closed[rows] = np.sum(distance <= radii, axis=1)
        inside[rows] = np.sum(distance < radii, axis=1)
    return closed, inside


def checked(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64, with their shapes and values checked.

    Args:
        a: [N, D] real numbers of any type.
        b: [M, D], M of 1 or more.

    Returns:
        a and b, not copied if they are float64 already.

    Raises:
        AssertionError: the arrays are not of rank 2, or of different D.
        ValueError: b is empty, D is 0, or a value is not finite.
    """
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    chex.assert_rank([a, b], 2)
    chex.assert_equal_shape_suffix([a, b], 1)
    if not b.size:
        raise ValueError(f'nothing to compare {a.shape} with: {b.shape}')
    for x in (a, b):
        if not np.all(np.isfinite(x)):
            raise ValueError(f'not all values of the {x.shape} array are finite')
    return a, b


def _distances(
    a: np.ndarray, b: np.ndarray, i: np.ndarray, j: np.ndarray
) -> np.ndarray:
    """Return |a_i - b_j| for each pair of rows i [P] and j [P]."""
    out = np.empty(len(i))
    num = max(1, _BLOCK // a.shape[1])
    for start in range(0, len(i), num):
        part = slice(start, start + num)
        squares = np.square(a[i[part]] - b[j[part]])
        out[part] = np.sqrt(np.sum(squares, axis=1))
    return out
