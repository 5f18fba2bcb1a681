"""Nearest neighbours and balls against brute force, ties included."""

import tracemalloc

import numpy as np
import pytest

from gm_jax.evaluation import neighbours


def _brute_force(queries, references):
    """[N, M] distances, from differences."""
    difference = queries[:, None].astype(float) - references[None].astype(float)
    return np.sqrt(np.sum(np.square(difference), axis=-1))


@pytest.fixture(params=[1, 100, 2**22])
def block(request, monkeypatch):
    """One query at a time, some, and all of them."""
    monkeypatch.setattr(neighbours, '_BLOCK', request.param)


@pytest.mark.parametrize('k', [1, 4, 23])
@pytest.mark.parametrize('dtype', [np.float64, np.float32, np.uint8])
def test_nearest_equals_brute_force(k, dtype, block):
    """Catch a k off by one, the farthest, unsigned differences, or a block's edge."""
    rng = np.random.default_rng(0)
    queries, references = (rng.uniform(0, 255, (n, 5)).astype(dtype) for n in (17, 23))
    index, distance = neighbours.nearest(queries, references, k)
    expected = _brute_force(queries, references)
    order = np.argsort(expected, axis=1, kind='stable')[:, :k]
    np.testing.assert_array_equal(index, order)
    sorted_distance = np.take_along_axis(expected, order, axis=1)
    np.testing.assert_allclose(distance, sorted_distance, rtol=1e-14)
    assert index.dtype == np.int64 and distance.dtype == np.float64


def test_ties_go_to_the_lower_index(block):
    """Catch ties that rounding or a partition decides: there are two distances."""
    rng = np.random.default_rng(1)
    point = rng.normal(1e3, 1, size=(1, 7))
    offset = rng.normal(size=(1, 7))
    references = np.concatenate([point + offset] * 20 + [point] * 20)
    index, distance = neighbours.nearest(point, references, 40)
    assert index[0].tolist() == [*range(20, 40), *range(20)]
    assert np.all(distance[0, :20] == 0)
    assert len(set(distance[0, 20:])) == 1


def test_close_neighbours_far_from_the_origin(block):
    """Catch |q|^2 - 2 q.r + |r|^2 alone: rounding at 1e6 hides distances of 1e-3."""
    steps = np.random.default_rng(2).permutation(30)
    references = 1e6 + 1e-3 * steps[:, None] * np.ones(4)
    references[-1] = 0  # So that the middle is not at 1e6.
    index, _ = neighbours.nearest(references[:-1], references, 2)
    expected = np.argsort(
        _brute_force(references[:-1], references), axis=1, kind='stable'
    )
    np.testing.assert_array_equal(index, expected[:, :2])


def test_distances_do_not_depend_on_the_side(block):
    """Catch d(x, y) that differs from d(y, x) in its last digit decides a tie."""
    x, y = np.random.default_rng(3).normal(size=(2, 9, 50))
    forth = neighbours.nearest(x, y, 9)
    back = neighbours.nearest(y, x, 9)
    matrices = np.empty((2, 9, 9))
    for matrix, (index, distance) in zip(matrices, (forth, back)):
        np.put_along_axis(matrix, index, distance, axis=1)
    np.testing.assert_array_equal(matrices[0], matrices[1].T)


def test_balls_and_their_spheres(block):
    """Catch a sphere decided by rounding: each radius is the distance of a point.

    The points lie near one another and far from the centres, where the matrix product
    is at its worst.
    """
    rng = np.random.default_rng(4)
    points = 1e4 + rng.normal(size=(12, 6))
    centres = rng.normal(size=(12, 6))
    index, distance = neighbours.nearest(centres, points, 5)
    closed, inside = neighbours.count_balls(points, centres, distance[:, 4])
    expected = np.bincount(index.ravel(), minlength=12)
    np.testing.assert_array_equal(closed, expected)
    on_sphere = np.bincount(index[:, 4], minlength=12)
    np.testing.assert_array_equal(inside, expected - on_sphere)


def test_memory_is_bounded(monkeypatch):
    """Catch all distances at a time: 2000 x 2000 take 32 MB, their comparison 4 MB."""
    monkeypatch.setattr(neighbours, '_BLOCK', 2**14)
    x = np.random.default_rng(5).normal(size=(2000, 3))
    neighbours.nearest(x[:2], x)  # What is imported or cached once.
    tracemalloc.start()
    _, distance = neighbours.nearest(x, x, 3)
    neighbours.count_balls(x, x, distance[:, 2])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


def test_refusals():
    """Catch a k past the end, images not yet flattened, and NaN."""
    x = np.zeros((3, 2))
    for k in (0, 4):
        with pytest.raises(ValueError, match=r'\[1, 3\]'):
            neighbours.nearest(x, x, k)
    with pytest.raises(ValueError, match='nothing'):
        neighbours.nearest(x, x[:0])
    with pytest.raises(ValueError, match='finite'):
        neighbours.nearest(x, np.full((3, 2), np.nan))
    for other in (np.zeros((3, 3)), np.zeros((3, 1)), np.zeros(2)):
        with pytest.raises(AssertionError):
            neighbours.nearest(x, other)
    with pytest.raises(AssertionError):
        neighbours.count_balls(x, x, np.ones(2))
    assert neighbours.nearest(x[:0], x)[0].shape == (0, 1)
