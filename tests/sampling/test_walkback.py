"""The chain against the matrix of its transitions, and the theorems on that matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.evaluation import mixing
from gm_jax.keys import fold_in_each
from gm_jax.sampling import walkback


def _bits(num_dims):
    """Return all images [2^D, D]."""
    return np.arange(2**num_dims)[:, None] >> np.arange(num_dims) & 1


def _ising(num_dims, coupling=0.4):
    """Return p(x) [2^D] of a grid of two rows: the bits are far from independent."""
    spins = (2 * _bits(num_dims) - 1).reshape(-1, 2, num_dims // 2)
    energy = (spins[:, 0] * spins[:, 1]).sum(1)
    energy += (spins[:, :, 1:] * spins[:, :, :-1]).sum((1, 2))
    p = np.exp(coupling * energy)
    return p / p.sum()


def _corruption(num_dims, rate):
    """Return C(x~|x) [S, S] of salt-and-pepper noise, by x and x~."""
    x = _bits(num_dims)
    flips = (x[:, None] != x[None]).sum(-1)
    return (rate / 2) ** flips * (1 - rate / 2) ** (num_dims - flips)


def _posterior(p, corruption):
    """Return p(x|x~) [S, S] by x~ and x."""
    joint = p[:, None] * corruption
    return (joint / joint.sum(axis=0)).T


def _product(posterior):
    """Return the product of the marginals of each bit, which a network can be."""
    x = _bits(len(posterior).bit_length() - 1)
    ones = (posterior @ x)[:, None]
    return np.prod(np.where(x[None], ones, 1 - ones), axis=2)


def _walkback(p, corruption, num, project):
    """Return the P(x|x~) that training with `num` walkbacks converges to."""
    P, last = project(_posterior(p, corruption)), np.inf
    while np.abs(P - last).max() > 1e-10:
        noise = total = corruption
        for _ in range(num - 1):
            noise = noise @ P @ corruption
            total = total + noise
        P, last = project(_posterior(p, total / num)), P
    return P


def _divergence(p, q):
    return float(np.sum(p * np.log(p / q)))


def _same(P):
    return P


@pytest.mark.parametrize('num', [1, 3])
def test_the_chain_of_the_optimal_denoiser_draws_the_data(num):
    """Catch a theorem that is not what the chain does: walkback keeps the data too.

    Training with walkback sees other noise than the chain has. Still the chain has the
    stationary distribution of the data, and it mixes faster.
    """
    p = _ising(6)
    for rate in (0.1, 0.4, 0.8):
        corruption = _corruption(6, rate)
        T = corruption @ _walkback(p, corruption, num, _same)
        assert abs(_divergence(p, mixing.stationary(T))) < 1e-8
        plain = mixing.spectral_gap(corruption @ _posterior(p, corruption))
        faster = 1.1 * plain if num > 1 and rate < 0.5 else plain
        assert mixing.spectral_gap(T) >= faster - 1e-9


def test_independent_bits_cost_the_square_of_the_noise():
    """Catch a claim that a network of independent bits is exact at any noise."""
    p, losses = _ising(8), []
    for rate in (0.05, 0.1, 0.2):
        corruption = _corruption(8, rate)
        P = _product(_posterior(p, corruption))
        losses.append(_divergence(p, mixing.stationary(corruption @ P)))
    ratios = np.divide(losses[1:], losses[:-1])
    assert np.all((3.5 < ratios) & (ratios < 5.5)) and losses[-1] < 0.05
    # Walkback has more noise, and so costs more.
    p, corruption = _ising(6), _corruption(6, 0.05)
    P, Q = _product(_posterior(p, corruption)), _walkback(p, corruption, 3, _product)
    plain, found = (
        _divergence(p, mixing.stationary(corruption @ each)) for each in (P, Q)
    )
    assert 5 * plain < found < 0.05


def test_clamped_bits():
    """Catch a conditional distribution that the clamped chain does not have."""
    p, x = _ising(6), _bits(6)
    corruption = _corruption(6, 0.0125)
    P = _product(_posterior(p, corruption))
    inside = np.flatnonzero((x[:, :3] == [1, 0, 1]).all(axis=1))
    # The other bits, whatever the network says of the clamped ones.
    T = corruption[inside] @ P.reshape(64, 8, 8).sum(axis=2)
    wanted = p[inside] / p[inside].sum()
    # As for the whole image, the square of the noise.
    assert _divergence(wanted, mixing.stationary(T)) < 1e-3
    assert _divergence(wanted, np.full(8, 1 / 8)) > 0.1


# P(x'|x~) of three bits, by the number of x~; the hidden state counts the steps.
LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)


def _denoise(rngs, x, hidden):
    del rngs
    number = (x @ jnp.asarray([1.0, 2.0, 4.0])).astype(jnp.int32)
    return LOGITS[number], hidden + 1


def _table():
    x, ones = _bits(3), np.asarray(jax.nn.sigmoid(LOGITS), np.float64)
    return np.prod(np.where(x[None], ones[:, None], 1 - ones[:, None]), axis=2)


@pytest.mark.parametrize('num_steps, known', [(1, False), (3, False), (2, True)])
def test_frequencies_are_those_of_the_transitions(num_steps, known, rng):
    """Catch noise of another rate, bits of other logits, and a step too many."""
    each, x = 20_000, _bits(3)
    T, mask = _corruption(3, 0.3) @ _table(), None
    if known:  # the first bit stays what it is, and the others are drawn as ever
        others = T.reshape(8, 4, 2).sum(axis=2, keepdims=True).repeat(2, axis=2)
        T = others.reshape(8, 8) * (x[:, None, 0] == x[None, :, 0])
        mask = jnp.broadcast_to(jnp.arange(3) < 1, (8 * each, 3))
    start = jnp.repeat(jnp.asarray(x, jnp.float32), each, axis=0)
    state, logits = walkback.chain(
        rng, _denoise, walkback.State(start, jnp.zeros(len(start))), 1, rate=0.3,
        burn_in=num_steps - 1, known=mask,
    )
    assert logits.shape == (1, 8 * each, 3) and state.hidden[0] == num_steps
    numbers = np.asarray(state.x, int) @ [1, 2, 4]
    counts = np.stack([np.bincount(n, minlength=8) for n in numbers.reshape(8, each)])
    expected = np.linalg.matrix_power(T, num_steps)
    error = np.sqrt(expected * (1 - expected) / each)
    np.testing.assert_array_less(np.abs(counts / each - expected), 5 * error + 1e-9)


def test_which_steps_are_returned(rng):
    """Catch a burn-in that the steps after it forget, and noise used twice."""
    start = walkback.State(jnp.zeros((5, 3)), jnp.zeros(5))
    _, every = walkback.chain(rng, _denoise, start, 12, rate=0.5)
    last, some = walkback.chain(
        rng, _denoise, start, 3, rate=0.5, burn_in=2, every=3
    )
    np.testing.assert_array_equal(some, every[4::3][:3])
    assert last.hidden[0] == 11
    assert len(np.unique(np.asarray(every[:, 0]), axis=0)) > 2


def test_a_chain_is_its_own(rng):
    """Catch a chain that those beside it change."""
    rngs = fold_in_each(rng, jnp.arange(4))
    x = walkback.fair_coins(rngs, 3)
    _, together = walkback.chain(
        rngs, _denoise, walkback.State(x, jnp.zeros(4)), 6, rate=0.5
    )
    _, alone = walkback.chain(
        rngs[2:3], _denoise, walkback.State(x[2:3], jnp.zeros(1)), 6, rate=0.5
    )
    np.testing.assert_array_equal(together[:, 2:3], alone)


def test_salt_and_pepper(rng):
    """Catch coins that are not fair, and a rate that counts flips."""
    x = jnp.full((2, 100_000), 0.25)
    np.testing.assert_array_equal(walkback.salt_and_pepper(rng, x, 0.0), x)
    for rate in (0.4, 1.0):
        y = np.asarray(walkback.salt_and_pepper(rng, x, rate))
        for value, share in ((0, rate / 2), (1, rate / 2), (0.25, 1 - rate)):
            assert np.mean(y == value) == pytest.approx(share, abs=0.005)
    assert np.mean(walkback.fair_coins(rng, 100_000, batch=2)) == pytest.approx(
        0.5, abs=0.005
    )


def test_gradients_flow_through_hidden_states_alone(rng):
    """Catch a gradient that passes what is drawn, which has none."""
    def denoise(w, rngs, x, hidden):
        del rngs
        return w * (x + hidden), w * (x + 2 * hidden)

    def total(w, detach, every=1):
        def step(rngs, x, hidden):
            if detach:
                hidden = jax.lax.stop_gradient(hidden)
            return denoise(w, rngs, x, hidden)

        start = walkback.State(jnp.ones((2, 4)), jnp.zeros((2, 4)))
        return walkback.chain(rng, step, start, 3, rate=0.2, every=every)[1].sum()

    full, one = (jax.grad(total)(0.5, detach) for detach in (False, True))
    assert np.isfinite(full) and abs(full - one) > 0.1
    # Also through the steps between those that are returned.
    assert abs(jax.grad(total)(0.5, False, 2) - jax.grad(total)(0.5, True, 2)) > 0.1


def test_wrong_shapes(rng):
    """Catch a mask or logits that would broadcast."""
    start = walkback.State(jnp.zeros((5, 3)), jnp.zeros(5))
    with pytest.raises(AssertionError):
        walkback.chain(rng, _denoise, start, 1, rate=0.5, known=jnp.zeros((1, 3), bool))
    with pytest.raises(AssertionError):
        walkback.chain(
            rng, lambda rngs, x, h: (x[:, :1], h), start, 1, rate=0.5
        )
    with pytest.raises(AssertionError):
        walkback.salt_and_pepper(rng, jnp.zeros(3), 0.5)
