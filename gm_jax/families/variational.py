"""The bounds of a latent-variable model, from the encoder to their terms.

For an image x and S samples z ~ q(z|x),

    encode    q(z|x), a diagonal Gaussian
    draw      z = mean + e^(logvar / 2) e,  e ~ N(0, I)
    decode    p(x|z)
    terms     log p(x|z),  KL(q(z|x) || p(z)),  log w = log p(x, z) - log q(z|x)
    bounds    E_q[log p(x|z)] - KL     (ELBO)        log (1/S) sum_s w_s     (IWAE)

With two layers z = (z1, z2), q(z|x) = q(z1|x) q(z2|z1) and p(x, z) = p(z2) p(z1|z2)
p(x|z1).

    terms = nn.apply(posterior_terms, model)(variables, x, target, rngs, num)

A model of its own, with a posterior and log p(x|z) as a function of z, has the same
terms by `sampled_terms`, and the same loss and results from them.

References:
    Kingma and Welling 2014, Auto-Encoding Variational Bayes.
    https://arxiv.org/abs/1312.6114
    Burda et al. 2016, Importance Weighted Autoencoders, sec. 3 and 5.
    https://arxiv.org/abs/1509.00519
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.evaluation import likelihood
from gm_jax.keys import Use, derive
from gm_jax.losses import dequantization, elbo, likelihoods
from gm_jax.models.vae import VAE, Gaussian
from gm_jax.training.train_state import Metrics

__all__ = [
    'chunk_size', 'Chunks', 'chunks', 'estimates', 'log_prob', 'mean_image',
    'negative_elbo', 'parts', 'posterior_terms', 'report', 'sampled_terms',
    'standard_normal', 'Terms',
]

# The numbers of importance samples among which an evaluation chooses.
_TEST_SAMPLES = (5000, 2500, 1000, 500, 250, 100, 50, 25, 10, 5, 1)


class Terms(NamedTuple):
    """The terms of the bounds, for S samples of the posterior of each example.

    Attributes:
        log_px: [B, S] log p(x|z1), in nats.
        kl: [B, Z] KL divergence of each unit, over all layers; where it has no closed
            form, its average over the samples.
        log_w: [B, S] log p(x, z) - log q(z|x).
        mean: [B, Z1] means of q(z1|x).
    """

    log_px: jax.Array
    kl: jax.Array
    log_w: jax.Array
    mean: jax.Array


def posterior_terms(
    model: VAE, x: jax.Array, target: jax.Array, rngs: jax.Array, num: int, **mode: Any
) -> Terms:
    """Draw z from q(z|x) and compute every term of the bounds.

    Args:
        model: a bound VAE (see flax.linen.apply).
        x: [B, H, W, C] in [0, 1], what the encoder sees.
        target: [B, H, W, C], the images whose likelihood is computed.
        rngs: [B] one key per example.
        num: S.
        **mode: train, dropout_rng, axis_name for the networks.

    Returns:
        Terms.
    """
    terms = _one_layer if len(model.latent_dims) == 1 else _two_layers
    return terms(model, x, target, rngs, num, **mode)


def _one_layer(
    model: VAE, x: jax.Array, target: jax.Array, rngs: jax.Array, num: int, **mode: Any
) -> Terms:
    def log_px(z: jax.Array) -> jax.Array:
        return log_prob(model, model.decode(z, **mode), target, num)

    return sampled_terms(model.encode(x, **mode), log_px, rngs, num)


def sampled_terms(
    q: Gaussian, log_px_given: Callable[[jax.Array], jax.Array], rngs: jax.Array,
    num: int,
) -> Terms:
    """Draw z from q(z|x) and compute every term of the bounds, with p(z) = N(0, I).

    Args:
        q: the posterior of each example, [B, Z].
        log_px_given: z [B * S, Z], the samples of an example in a row -> log p(x|z)
            [B * S], in nats.
        rngs: [B] one key per example.
        num: S.

    Returns:
        Terms.
    """
    # Draw S samples per example.
    q_each = _repeat(q, num)
    z = _draw(derive(rngs, Use.LATENT), q_each, num)
    # Decode: p(x|z).
    log_px = _by_example(log_px_given(z), num)
    # The terms.
    kl = elbo.gaussian_kl_per_unit(q.mean, q.logvar)
    log_ratio = _log_density(q_each, z) - _log_density(standard_normal(z), z)
    log_w = log_px - _by_example(log_ratio, num).sum(-1)
    return Terms(log_px, kl, log_w, q.mean)


def _two_layers(
    model: VAE, x: jax.Array, target: jax.Array, rngs: jax.Array, num: int, **mode: Any
) -> Terms:
    # The first layer: encode q(z1|x), draw z1, decode p(x|z1).
    q1 = model.encode(x, **mode)
    q1_each = _repeat(q1, num)
    z1 = _draw(derive(rngs, Use.LATENT), q1_each, num)
    log_px = _by_example(log_prob(model, model.decode(z1, **mode), target, num), num)
    # The second layer: encode q(z2|z1), draw z2, decode p(z1|z2).
    q2 = model.encode2(z1, **mode)
    z2 = _draw(derive(rngs, Use.LATENT_2), q2, num)
    p1 = model.decode2(z2, **mode)
    # The terms. The prior of z1 depends on z2, so its KL is an average over the
    # samples; that of z2 given z1 is exact.
    log_ratio1 = _log_density(q1_each, z1) - _log_density(p1, z1)
    log_ratio2 = _log_density(q2, z2) - _log_density(standard_normal(z2), z2)
    log_ratio = _by_example(jnp.concatenate([log_ratio1, log_ratio2], axis=-1), num)
    kl2 = elbo.gaussian_kl_per_unit(q2.mean, q2.logvar)
    kl = _by_example(jnp.concatenate([log_ratio1, kl2], axis=-1), num).mean(1)
    return Terms(log_px, kl, log_px - log_ratio.sum(-1), q1.mean)


def _repeat(q: Gaussian, num: int) -> Gaussian:
    """Repeat every row: [B, Z] to [B * S, Z]."""
    return Gaussian(*(jnp.repeat(a, num, axis=0) for a in q))


def _by_example(values: jax.Array, num: int) -> jax.Array:
    """Give the samples of an example their own axis: [B * S, ...] to [B, S, ...]."""
    return values.reshape(-1, num, *values.shape[1:])


def _draw(rngs: jax.Array, q: Gaussian, num: int) -> jax.Array:
    """Draw from q, [B * S, Z], with one key per example [B]."""
    z = likelihoods.gaussian_sample(
        rngs, _by_example(q.mean, num), _by_example(q.logvar, num)
    )
    return z.reshape(q.mean.shape)


def _log_density(p: Gaussian, z: jax.Array) -> jax.Array:
    """Compute the log density of each unit, [N, Z]."""
    return likelihoods.gaussian_log_prob_per_unit(*p, z)


def standard_normal(z: jax.Array) -> Gaussian:
    """Return the prior N(0, I) of a top latent like z."""
    return Gaussian(jnp.zeros_like(z), jnp.zeros_like(z))


def log_prob(model: VAE, params: Any, target: jax.Array, num: int) -> jax.Array:
    """Compute log p(x|z) of each example under each of its `num` samples, [B * S].

    A Gaussian is a density, so `target` is dequantized and the result a bound.
    """
    # Flat, because XLA on the CPU vectorises the last axis: for grey images, 1 channel.
    flat = target.reshape(len(target), -1)
    target = jnp.repeat(flat, num, axis=0).reshape(-1, *model.image_shape)
    if model.likelihood == 'gaussian':
        mean, logvar = params
        log_density = likelihoods.gaussian_log_prob(mean, logvar, target)
        return dequantization.log_prob(
            log_density, int(np.prod(model.image_shape)), num_values=model.num_values
        )
    if model.likelihood == 'categorical':
        return likelihoods.categorical_log_prob(params, target)
    return likelihoods.bernoulli_log_prob(params, target)


def mean_image(model: VAE, params: Any) -> jax.Array:
    """Return the mean of p(x|z) as an image in [0, 1], [N, H, W, C]."""
    if model.likelihood == 'gaussian':
        # Of y = (x + u) / V, in which a level x lies at (x + 1/2) / V on average.
        x = params.mean * model.num_values - 0.5
        return jnp.clip(x / (model.num_values - 1), 0.0, 1.0)
    if model.likelihood == 'categorical':
        levels = jnp.linspace(0.0, 1.0, model.num_values)
        return jnp.einsum('...v,v->...', jax.nn.softmax(params), levels)
    return jax.nn.sigmoid(params)


def negative_elbo(
    terms: Terms, *, beta: jax.Array | float, free_bits: float = 0.0,
    axis_name: str | None = None,
) -> tuple[jax.Array, Metrics]:
    """Compute minus the ELBO, averaged over the batch, and its terms.

    Args:
        terms: the terms of a batch.
        beta: the weight of the KL term.
        free_bits: nats of KL per latent unit that cost nothing; see `elbo.free_bits`.
        axis_name: the pmap axis over which the batch is spread.

    Returns:
        The loss [], and means over the batch by their names.
    """
    log_px, kl = terms.log_px.mean(1), terms.kl.sum(1)
    metrics = jax.tree.map(jnp.mean, parts(log_px, kl))
    if free_bits:
        cost = elbo.free_bits(terms.kl, free_bits, axis_name=axis_name)
        return beta * cost - log_px.mean(), metrics
    return -elbo.elbo(log_px, kl, beta=beta).mean(), metrics


def parts(log_px: jax.Array, kl: jax.Array) -> dict[str, jax.Array]:
    """Return the terms of minus the ELBO [B], and their sum, under their names."""
    return {
        'reconstruction_nats': -log_px, 'kl_nats': kl,
        'negative_elbo_nats': -elbo.elbo(log_px, kl),
    }


class Chunks(NamedTuple):
    """The importance samples of a final evaluation.

    Attributes:
        size: samples of an image that are decoded together.
        num: chunks of this many.
        fewer: smaller numbers of chunks, for when these take too long.
    """

    size: int
    num: int
    fewer: tuple[int, ...]


def chunk_size(fit: int, wanted: int) -> int:
    """Return the samples of a chunk: as many as fit and make up the wanted number.

    Args:
        fit: the most that are decoded together.
        wanted: --test_samples; 0: any number.
    """
    if not wanted:
        return fit
    return next(n for n in range(min(fit, wanted), 0, -1) if wanted % n == 0)


def chunks(size: int, wanted: int, most: int) -> Chunks:
    """Return how many chunks of samples an evaluation has.

    Args:
        size: samples of a chunk, a divisor of those wanted.
        wanted: --test_samples; 0: up to `most`, as many as there is time for.
        most: one of the numbers among which an evaluation chooses.
    """
    if wanted:
        return Chunks(size, wanted // size, ())
    fewer = (num for num in _TEST_SAMPLES if num < most and num % size == 0)
    return Chunks(size, -(-most // size), tuple(num // size for num in fewer))


def estimates(terms: Terms) -> dict[str, jax.Array]:
    """Return the arrays of the final evaluation."""
    return {
        'log_w': elbo.iwae_bound(terms.log_w.T), 'mean': terms.mean,
        'log_px': terms.log_px.mean(1), 'kl': terms.kl,
    }


def report(
    num_dims: int, chunk_size: int, arrays: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Return the numbers of results.json.

    Args:
        num_dims: D, the number of values of an image.
        chunk_size: the samples of each estimate.
        arrays: those of `estimates`, 'log_w' [N, chunks].
    """
    kl = arrays['kl'].mean(axis=0, dtype=np.float64)
    activity = arrays['mean'].var(axis=0, dtype=np.float64)
    samples = arrays['log_w'].shape[1] * chunk_size
    log_px = likelihood.combine(arrays['log_w'])
    expected = float(arrays['log_px'].mean(dtype=np.float64))
    return {
        **likelihood.report(log_px, num_dims, f'iwae-{samples}'),
        'importance_samples': samples,
        'negative_elbo_nats': float(kl.sum()) - expected,
        'reconstruction_nats': -expected,
        'kl_nats': float(kl.sum()),
        'active_units': int((activity > 0.01).sum()),
        'kl_nats_per_unit': kl.round(4).tolist(),
        'activity_per_unit': activity.round(4).tolist(),
    }
