"""Walks through a latent space, as pure functions of `decode` (z [N, Z] -> [N, ...]).

The latent is assumed to have the prior N(0, I). `decode` may return images, logits or
any other array with one row per latent:

    picture = latent.manifold(decode, 20)  # [20, 20, H, W, C]
"""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

from gm_jax.keys import per_example

__all__ = [
    'arithmetic', 'Decode', 'interpolate', 'manifold', 'manifold_grid',
    'prior_sample', 'traverse',
]

Decode = Callable[[jax.Array], jax.Array]


def prior_sample(
    rng: jax.Array, num_latents: int, *, batch: int | None = None
) -> jax.Array:
    """Draw z ~ N(0, I).

    Args:
        rng: [B] keys, one per example; or one key, with `batch`.
        num_latents: Z.
        batch: B, if one key is given.

    Returns:
        [B, Z] float32.

    Raises:
        AssertionError: `rng` is neither [B] keys nor one key with `batch`.
    """
    def draw(rng: jax.Array) -> jax.Array:
        return jax.random.normal(rng, (num_latents,), jnp.float32)

    return jax.vmap(draw)(per_example(rng, batch))


def manifold_grid(
    num: int, *, low: float = 0.05, high: float = 0.95
) -> jax.Array:
    """Compute a square grid of 2-D latents, evenly spaced in probability.

    The coordinates are the Gaussian quantiles F^-1(p), p evenly spaced from low to
    high, so that every cell holds the same mass of the prior.

    Args:
        num: latents along each axis.
        low: p of the first latent of an axis, in (0, 1).
        high: p of the last latent of an axis, in (low, 1).

    Returns:
        [num * num, 2] row by row: z_0 rises from left to right, z_1 from bottom to top.

    Raises:
        ValueError: num is below 1, or it is not true that 0 < low < high < 1.

    References:
        Kingma and Welling 2014, Auto-Encoding Variational Bayes, appendix A.
        https://arxiv.org/abs/1312.6114
    """
    if num < 1:
        raise ValueError(f'num must be at least 1, got {num}')
    if not 0 < low < high < 1:
        raise ValueError(f'need 0 < low < high < 1, got {low} and {high}')
    quantiles = jax.scipy.special.ndtri(jnp.linspace(low, high, num))
    right, up = jnp.meshgrid(quantiles, quantiles[::-1])
    return jnp.stack([right.ravel(), up.ravel()], axis=1)


def manifold(
    decode: Decode, num: int, *, low: float = 0.05, high: float = 0.95
) -> jax.Array:
    """Decode `manifold_grid`: the picture of a 2-D latent space.

    Args:
        decode: [N, 2] -> [N, ...].
        num: latents along each axis.
        low: p of the first latent of an axis, as in `manifold_grid`.
        high: p of the last latent of an axis.

    Returns:
        [num, num, ...] decoded rows, top row first.

    Raises:
        ValueError: as `manifold_grid`.
    """
    out = decode(manifold_grid(num, low=low, high=high))
    return out.reshape(num, num, *out.shape[1:])


def traverse(
    decode: Decode, z: jax.Array, dims: Sequence[int], values: jax.typing.ArrayLike
) -> jax.Array:
    """Decode z with one coordinate at a time set to each of several values.

    Args:
        decode: [N, Z] -> [N, ...].
        z: [Z] the latent to start from.
        dims: D coordinates, each in [0, Z).
        values: [V] the values that the coordinate is set to.

    Returns:
        [D, V, ...] one row per coordinate.

    Raises:
        AssertionError: z or values is not of rank 1.
        ValueError: a coordinate is outside [0, Z).
    """
    z, values = jnp.asarray(z), jnp.asarray(values)
    chex.assert_rank([z, values], 1)
    for dim in dims:
        if not 0 <= dim < z.size:
            raise ValueError(f'coordinate {dim} is outside [0, {z.size})')
    chosen = jax.nn.one_hot(jnp.asarray(dims, jnp.int32), z.size, dtype=bool)
    rows = jnp.where(chosen[:, None, :], values[None, :, None], z[None, None, :])
    out = decode(rows.reshape(-1, z.size))
    return out.reshape(len(dims), values.size, *out.shape[1:])


def interpolate(
    z0: jax.Array, z1: jax.Array, num: int, *, spherical: bool = False
) -> jax.Array:
    """Compute points from z0 to z1, both included, along a line or a great circle.

    With t from 0 to 1, the line is (1 - t) z0 + t z1 and the arc is
    (sin((1 - t) a) z0 + sin(t a) z1) / sin a, where a is the angle between z0 and z1.
    In many dimensions a prior's mass lies near a sphere: the line leaves it, the arc
    does not. Where the arc is not unique (parallel, opposite or zero vectors) the line
    takes its place.

    Args:
        z0: [..., Z] start.
        z1: [..., Z] end.
        num: number of points, at least 2.
        spherical: whether to take the arc.

    Returns:
        [num, ..., Z].

    Raises:
        AssertionError: the shapes differ, or are scalars.
        ValueError: num is below 2.

    References:
        Shoemake 1985, Animating rotation with quaternion curves, SIGGRAPH.
        White 2016, Sampling Generative Networks. https://arxiv.org/abs/1609.04468
    """
    chex.assert_rank(z0, set(range(1, 9)))
    chex.assert_equal_shape([z0, z1])
    if num < 2:
        raise ValueError(f'num must be at least 2, got {num}')
    z0, z1 = jnp.asarray(z0)[None], jnp.asarray(z1)[None]
    t = jnp.linspace(0, 1, num).reshape(-1, *[1] * (z0.ndim - 1))
    start, end = 1 - t, t
    if spherical:
        # With u = a / pi, t sinc(t u) / sinc(u) = sin(t a) / sin a, without 0 / 0 at 0.
        turns = _angle(z0, z1) / jnp.pi
        # Opposite vectors would divide by 0: their line at least keeps both ends.
        turns = jnp.where(jnp.sinc(turns) > 1e-6, turns, 0)
        start, end = (w * jnp.sinc(w * turns) / jnp.sinc(turns) for w in (start, end))
    return start * z0 + end * z1


def _angle(z0: jax.Array, z1: jax.Array) -> jax.Array:
    """Return the angle between the last axes [..., 1]; 0 if a vector is zero.

    It is the arctan2 of difference and sum of the unit vectors: arccos of their product
    loses its precision near pi, where the arc needs it.
    """
    norms = [_norm(z) for z in (z0, z1)]
    a, b = (z / jnp.where(norm > 0, norm, 1) for z, norm in zip((z0, z1), norms))
    angle = 2 * jnp.arctan2(_norm(a - b), _norm(a + b))
    return jnp.where((norms[0] > 0) & (norms[1] > 0), angle, 0)


def _norm(z: jax.Array) -> jax.Array:
    """Return the lengths of the last axes [..., 1], with gradient 0 at 0."""
    squares = jnp.sum(jnp.square(z), axis=-1, keepdims=True)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def arithmetic(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """Compute mean(a) - mean(b) + mean(c): smiling woman - woman + man.

    Means are used because single latents give unstable pictures.

    Args:
        a: [Na, Z] latents with the attribute.
        b: [Nb, Z] latents like a, without the attribute.
        c: [Nc, Z] latents that are to get the attribute.

    Returns:
        [Z].

    Raises:
        AssertionError: ranks are not 2, or Z differs.

    References:
        Radford et al. 2016, Unsupervised Representation Learning with DCGAN,
        sec. 6.3.2. https://arxiv.org/abs/1511.06434
    """
    chex.assert_rank([a, b, c], 2)
    chex.assert_equal_shape_suffix([a, b, c], 1)
    return jnp.mean(a, axis=0) - jnp.mean(b, axis=0) + jnp.mean(c, axis=0)
