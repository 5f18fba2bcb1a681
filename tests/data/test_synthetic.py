"""The synthetic sets have the entropy that they claim."""

import itertools

import numpy as np
import pytest
import scipy.integrate

from gm_jax.data import sources, synthetic
from gm_jax.errors import UserError


def every_image(height: int, width: int) -> np.ndarray:
    """All binary images, [2^(HW), H, W]."""
    images = itertools.product((0, 1), repeat=height * width)
    return np.array(list(images)).reshape(-1, height, width)


def log_prob_by_enumeration(height, width, coupling):
    """Compute the energy of every image and normalize over all of them."""
    spins = 2.0 * every_image(height, width) - 1
    energy = coupling * (
        (spins[:, 1:] * spins[:, :-1]).sum((1, 2))
        + (spins[:, :, 1:] * spins[:, :, :-1]).sum((1, 2))
    )
    return energy - np.log(np.exp(energy).sum())


def log_prob_by_chain(images, chain):
    """Return what the chain of rows gives each image."""
    states = (images << np.arange(images.shape[2])).sum(2)
    log_prob = np.log(chain.first[states[:, 0]])
    for row, transition in enumerate(chain.transitions):
        log_prob += np.log(transition[states[:, row], states[:, row + 1]])
    return log_prob


@pytest.mark.parametrize('height,width', [(1, 3), (3, 1), (3, 3), (4, 3), (2, 5)])
@pytest.mark.parametrize('coupling', [0.4, -0.7, 0.0])
def test_ising_chain_equals_enumeration(height, width, coupling):
    """Catch a missing or doubled bond, and messages in the wrong order of rows."""
    expected = log_prob_by_enumeration(height, width, coupling)
    chain = synthetic.ising_chain(height, width, coupling)
    log_prob = log_prob_by_chain(every_image(height, width), chain)
    np.testing.assert_allclose(log_prob, expected, rtol=0, atol=1e-12)
    entropy = -np.sum(np.exp(expected) * expected)
    np.testing.assert_allclose(synthetic.entropy(chain), entropy, rtol=1e-12)


def test_without_coupling_the_entropy_is_that_of_coins():
    """Catch a wrong unit: 8 x 8 fair coins have 64 log 2 nats."""
    chain = synthetic.ising_chain(8, 8, 0.0)
    np.testing.assert_allclose(synthetic.entropy(chain), 64 * np.log(2), rtol=1e-12)


def test_samples_have_the_chain_s_probabilities():
    """Catch a sampler off by one state, or a row from the wrong table."""
    chain = synthetic.ising_chain(3, 2, 0.8)
    num = 100_000
    images = synthetic.sample(chain, np.random.default_rng(0).random((num, 3)))
    assert images.shape == (num, 3, 2, 1) and images.dtype == np.uint8
    every = every_image(3, 2)
    codes = images.reshape(num, 6) @ (2 ** np.arange(6)[::-1])
    counts = np.bincount(codes, minlength=64)
    p = np.exp(log_prob_by_chain(every, chain))
    assert (np.abs(counts / num - p) < 4.5 * np.sqrt(p * (1 - p) / num)).all()


def test_ising_set_reaches_its_entropy():
    """Catch a set that was not drawn from the chain whose entropy it states."""
    data = sources.load('synthetic:ising')
    chain = synthetic.ising_chain(8, 8, synthetic.COUPLING)
    assert (data.image_shape, data.num_values, data.num_classes) == ((8, 8, 1), 2, 0)
    for name, split in data.splits.items():
        nats = -log_prob_by_chain(split.images[..., 0].astype(int), chain)
        error = nats.std() / np.sqrt(len(nats))
        assert abs(nats.mean() - data.entropy) < 4 * error, name


def test_checkers_are_uniform_over_their_images():
    """Catch a block of one value, or pairs that are not equally likely."""
    data = sources.load('synthetic:checkers')
    assert (data.image_shape, data.num_values, data.num_classes) == ((4, 4, 1), 4, 4)
    images = data.splits['train'].images[..., 0]
    blocks = images.reshape(-1, 2, 2, 2, 2).swapaxes(2, 3).reshape(-1, 2, 2)
    a, b = blocks[:, 0, 0], blocks[:, 0, 1]
    np.testing.assert_array_equal(blocks, np.stack([a, b, b, a], 1).reshape(-1, 2, 2))
    assert (a != b).all()
    counts = np.bincount(4 * a + b, minlength=16).reshape(4, 4)[~np.eye(4, dtype=bool)]
    expected = len(a) / 12
    assert np.abs(counts - expected).max() < 4.5 * np.sqrt(expected)
    np.testing.assert_array_equal(images[:, 0, 0], data.splits['train'].labels)
    np.testing.assert_allclose(data.entropy, np.log(12**4))


@pytest.mark.parametrize('how', ['static', 'dynamic', 'threshold'])
def test_what_is_known_of_grey_levels_is_not_known_of_bits(how):
    """Catch an entropy above the nats of every good model, and modes between bits."""
    assert sources.load('synthetic:checkers', binarize=how).entropy is None
    data = sources.load('synthetic:grid25', binarize=how)
    assert data.entropy is None and synthetic.modes(data) is None
    assert synthetic.modes(sources.load('synthetic:grid25')) is not None


@pytest.mark.parametrize('name', ['ising', 'checkers'])
def test_the_images_are_the_same_in_every_run(name):
    """Catch a set that is drawn anew each time."""
    first, second = (synthetic.make(name).splits for _ in range(2))
    np.testing.assert_array_equal(first['test'].images, second['test'].images)


def test_unknown_name():
    """Catch a traceback for a set that does not exist."""
    with pytest.raises(UserError, match='There is no synthetic:potts, only'):
        sources.load('synthetic:potts')


def test_lorenz_solves_its_equations_to_fourth_order():
    """Catch a wrong coefficient, and a Runge-Kutta method that is of lower order.

    Half the step leaves a sixteenth of the error; SciPy's solution is exact to 1e-9.
    """
    def slope(t, state):
        x, y, z = state
        return 10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z

    start = np.array([1.0, 2.0, 20.0])
    exact = scipy.integrate.solve_ivp(
        slope, (0, 2), start, t_eval=[0.5, 1, 1.5, 2], rtol=1e-12, atol=1e-12
    )
    errors = []
    for step in (0.005, 0.0025):
        states = synthetic.lorenz(start[:, None], num=4, interval=0.5, step=step)
        assert states.shape == (4, 3, 1)
        errors.append(np.abs(states[..., 0] - exact.y.T).max())
    assert errors[1] < 5e-6 and 12 < errors[0] / errors[1] < 25


def test_lorenz_is_a_set():
    """Catch series that were clipped, and a test set that continues a training one.

    Of two solutions that were together 40 before, nothing is alike.
    """
    data = sources.load('synthetic:lorenz')
    assert data.image_shape == (1, 96, 1) and data.num_values == 256
    train, test = (data.splits[name].images[:, 0, :, 0] for name in ('train', 'test'))
    assert 0 < test.min() and test.max() < 255
    assert len(np.unique(np.concatenate([train, test]), axis=0)) == 11_000
    end = synthetic.lorenz(np.array([[1, 1 + 1e-4], [1, 1], [1, 1]]), 1, 40.0, 0.02)
    assert np.abs(np.diff(end[0])).max() > 1


def test_grid25_is_25_equal_gaussians():
    """Catch modes that are not where they are said to be, or not equally likely.

    The entropy is that of the counts, but for their own error and the bias of an
    estimate by counts, (bins - 1) / 2 N.
    """
    data = sources.load('synthetic:grid25')
    known = synthetic.modes(data)
    assert (data.image_shape, data.num_classes) == ((1, 2, 1), 25)
    x = data.splits['train'].images.reshape(-1, 2).astype(float)
    labels = data.splits['train'].labels
    deviations = x - known.centres[labels]
    assert np.abs(deviations).max() < 5.5 * known.std
    # Rounding adds 1/12 to the variance.
    np.testing.assert_allclose(
        deviations.var(0), known.std**2 + 1 / 12, rtol=0.03
    )
    counts = np.bincount(labels, minlength=25)
    assert np.abs(counts - 2000).max() < 4.5 * np.sqrt(2000)
    p = np.unique(x, axis=0, return_counts=True)[1] / len(x)
    estimate = -np.sum(p * np.log(p)) + (len(p) - 1) / 2 / len(x)
    np.testing.assert_allclose(estimate, data.entropy, atol=0.02)
