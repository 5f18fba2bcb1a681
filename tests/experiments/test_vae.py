"""The VAE's terms against integrals, enumerations and formulas in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import special, stats

from experiments import vae
from gm_jax.data import sources
from gm_jax.errors import UserError
from gm_jax.families import variational
from gm_jax.families.variational import mean_image, posterior_terms
from gm_jax.losses import elbo, likelihoods
from gm_jax.models.vae import VAE, Gaussian

GRID = np.linspace(-9, 9, 1201)


def _model(latent_dims, **kwargs) -> tuple[VAE, dict]:
    """Return a model of 2x2 images that depends on z strongly, and its variables."""
    defaults = dict(image_shape=(2, 2, 1), hidden=(6,), hidden2=(4,))
    model = VAE(latent_dims=latent_dims, activation=jnp.tanh, **(defaults | kwargs))
    x = jnp.zeros((1, *model.image_shape))
    variables = jax.jit(model.init)(jax.random.key(4), x)
    rng = np.random.default_rng(5)
    return model, jax.tree.map(
        lambda w: w + 0.4 * rng.normal(size=w.shape).astype(np.float32), variables
    )


def _widened(variables: dict) -> dict:
    """Widen q beyond the posterior, so that no weight is far from the others."""
    params = dict(variables['params'])
    for name in {'posterior', 'posterior2'} & set(params):
        kernel, bias = (params[name]['Dense_0'][key] for key in ('kernel', 'bias'))
        bias = jnp.where(jnp.arange(bias.size) < bias.size // 2, 0.0, 1.0)
        params[name] = {'Dense_0': {'kernel': 0.2 * kernel, 'bias': bias}}
    return {'params': params}


def _all_images(num_values=2, num_pixels=4) -> np.ndarray:
    values = np.meshgrid(*[np.arange(num_values)] * num_pixels, indexing='ij')
    return np.stack(values, -1).reshape(-1, 2, 2, 1).astype(np.int32)


def _terms(model, variables, x, target, num, seed=0) -> variational.Terms:
    rngs = jax.random.split(jax.random.key(seed), len(x))
    apply = jax.jit(nn.apply(posterior_terms, model), static_argnums=4)
    return jax.device_get(apply(variables, x, target, rngs, num))


def _exact_log_px(model, variables, target) -> np.ndarray:
    """Integrate p(x, z) over z on a grid, [B]."""
    step = GRID[1] - GRID[0]
    z = jnp.asarray(GRID[:, None], jnp.float32)
    log_prior = stats.norm.logpdf(GRID)
    if len(model.latent_dims) == 2:
        p1 = model.apply(variables, z, method=VAE.decode2)
        mean, logvar = (np.asarray(a, np.float64) for a in p1)  # [G2, 1]
        log_joint = log_prior[:, None] + stats.norm.logpdf(
            GRID[None], mean, np.exp(logvar / 2)
        )
        log_prior = special.logsumexp(log_joint, axis=0) + np.log(step)
    params = model.apply(variables, z, method=VAE.decode)
    log_px = np.stack([
        variational.log_prob(model, params, jnp.asarray(x)[None], len(GRID))
        for x in target
    ]).astype(np.float64)
    return special.logsumexp(log_px + log_prior, axis=1) + np.log(step)


@pytest.mark.parametrize('latent_dims, likelihood', [
    ((1,), 'bernoulli'), ((1, 1), 'bernoulli'), ((1,), 'categorical'),
])
def test_many_samples_approach_the_exact_likelihood(latent_dims, likelihood):
    """Catch any term of log w that is missing, doubled or of the wrong sign."""
    num_values = 2 if likelihood == 'bernoulli' else 3
    model, variables = _model(
        latent_dims, likelihood=likelihood, num_values=num_values
    )
    variables = _widened(variables)
    target = _all_images(num_values)
    exact = _exact_log_px(model, variables, target)
    np.testing.assert_allclose(np.exp(exact).sum(), 1, rtol=1e-5)
    x = target.astype(np.float32) / (num_values - 1)
    num = 4000
    log_w = _terms(model, variables, x, target, num).log_w.astype(np.float64)
    estimate = special.logsumexp(log_w, axis=1) - np.log(num)
    weights = np.exp(log_w - exact[:, None])
    error = weights.std(axis=1) / np.sqrt(num)
    assert error.max() < 0.1 and exact.std() > 0.3
    assert (np.abs(estimate - exact) < 6 * error + 1e-4).all()
    # All images together are known ten times better than each.
    assert abs(np.mean((estimate - exact) / error)) < 5 / np.sqrt(len(exact))
    assert (log_w.mean(axis=1) < exact).all()


@pytest.mark.parametrize('latent_dims', [(3,), (3, 2)])
def test_one_sample_is_the_elbo_in_expectation(latent_dims):
    """Catch a KL that belongs to other distributions than the samples."""
    model, variables = _model(latent_dims)
    target = _all_images()
    terms = _terms(model, variables, target.astype(np.float32), target, 5000)
    bound = elbo.elbo(terms.log_px.mean(1), terms.kl.sum(1))
    error = terms.log_w.std(axis=1) / np.sqrt(5000)
    assert (np.abs(terms.log_w.mean(axis=1) - bound) < 6 * error + 1e-4).all()
    assert terms.kl.shape == (16, sum(latent_dims))


def _dense(params, h):
    return h @ np.float64(params['kernel']) + np.float64(params['bias'])


def _gaussian(params, stack, head, h) -> tuple[np.ndarray, np.ndarray]:
    h = np.tanh(_dense(params[stack]['Dense_0'], h))
    out = _dense(params[head]['Dense_0'], h)
    return tuple(np.split(out, 2, axis=-1))


def _log_normal(z, mean, logvar) -> np.ndarray:
    return stats.norm.logpdf(z, mean, np.exp(logvar / 2)).sum(axis=-1)


@pytest.mark.parametrize('latent_dims', [(3,), (3, 2)])
def test_terms_equal_the_float64_formula(latent_dims, monkeypatch):
    """Catch samples that are paired with another example, and wrong networks."""
    drawn = []
    gaussian_sample = likelihoods.gaussian_sample

    def keep(*args):
        drawn.append(gaussian_sample(*args))
        return drawn[-1]

    monkeypatch.setattr(likelihoods, 'gaussian_sample', keep)
    model, variables = _model(latent_dims)
    target, num = _all_images()[3:8], 7
    x = target.astype(np.float32)
    rngs = jax.random.split(jax.random.key(0), 5)
    terms = nn.apply(posterior_terms, model)(variables, x, target, rngs, num)
    params = jax.device_get(variables['params'])

    z1 = np.float64(drawn[0])  # [B, S, Z1]
    q1 = _gaussian(params, 'encoder', 'posterior', x.reshape(5, 1, 4))
    h = np.tanh(_dense(params['decoder']['Dense_0'], z1))
    logits = _dense(params['output'], h)
    flat = target.reshape(5, 1, 4)
    log_px = (flat * logits - np.logaddexp(0, logits)).sum(-1)
    log_w = log_px - _log_normal(z1, *q1)
    if len(latent_dims) == 2:
        z2 = np.float64(drawn[1]).reshape(5, num, 2)
        log_w -= _log_normal(z2, *_gaussian(params, 'encoder2', 'posterior2', z1))
        log_w += _log_normal(z1, *_gaussian(params, 'decoder2', 'prior', z2))
        log_w += _log_normal(z2, 0, np.zeros(2))
    else:
        log_w += _log_normal(z1, 0, np.zeros(3))
        mean, logvar = (a[:, 0] for a in q1)
        kl = (mean**2 + np.exp(logvar) - 1 - logvar) / 2
        np.testing.assert_allclose(terms.kl, kl, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(terms.log_px, log_px, rtol=1e-5)
    np.testing.assert_allclose(terms.log_w, log_w, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(terms.mean, q1[0][:, 0], rtol=1e-4, atol=1e-6)


def test_samples_belong_to_the_example():
    """Catch noise that depends on the batch or on the place in it."""
    model, variables = _model((3, 2))
    target = _all_images()
    x = target.astype(np.float32)
    rngs = jax.random.split(jax.random.key(0), 16)
    apply = jax.jit(nn.apply(posterior_terms, model), static_argnums=4)
    terms = apply(variables, x, target, rngs, 4)
    few = apply(variables, x[5:7], target[5:7], rngs[5:7], 4)
    np.testing.assert_allclose(few.log_w, terms.log_w[5:7], rtol=1e-5)
    assert np.ptp(terms.log_w, axis=1).min() > 1e-3


def _made_up_terms() -> variational.Terms:
    rng = np.random.default_rng(0)
    log_px, log_w = (jnp.asarray(rng.normal(size=(4, 3)), jnp.float32) for _ in 'ab')
    kl = jnp.asarray(rng.gamma(0.5, size=(4, 6)), jnp.float32)
    return variational.Terms(log_px, kl, log_w, jnp.zeros((4, 6)))


@pytest.mark.parametrize('settings, step, beta', [
    ({}, 0, 1.0),
    ({'beta': 4.0}, 0, 4.0),
    ({'kl_warmup_steps': 10}, 0, 0.1),
    ({'kl_warmup_steps': 10, 'beta': 4.0}, 4, 2.0),
    ({'kl_warmup_steps': 10}, 9, 1.0),
    ({'kl_warmup_steps': 10}, 1000, 1.0),
])
def test_beta_weighs_the_kl(settings, step, beta):
    """Catch a weight on the wrong term and a warm-up that goes past its end."""
    terms = _made_up_terms()
    loss, metrics = vae.objective(vae.Config(**settings), terms, jnp.int32(step), None)
    kl = terms.kl.sum(1).mean()
    np.testing.assert_allclose(loss, beta * kl - terms.log_px.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics['kl_nats'], kl, rtol=1e-6)
    np.testing.assert_allclose(
        metrics['reconstruction_nats'], -terms.log_px.mean(), rtol=1e-5
    )


def test_free_bits_and_iwae_objectives():
    """Catch a minimum for each example instead of each unit, and mixed-up axes."""
    terms = _made_up_terms()
    config = vae.Config(free_bits=0.3, beta=2.0)
    kl = np.asarray(terms.kl, np.float64).mean(0)
    assert kl.min() < 0.3 < kl.max()
    loss, _ = vae.objective(config, terms, jnp.int32(0), None)
    expected = 2 * np.maximum(kl, 0.3).sum() - terms.log_px.mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    loss, _ = vae.objective(vae.Config(objective='iwae'), terms, jnp.int32(0), None)
    expected = -(special.logsumexp(terms.log_w, axis=1) - np.log(3)).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize('settings', [
    {'beta': 0.5}, {'free_bits': 0.1}, {'kl_warmup_steps': 3},
])
def test_iwae_has_no_kl_to_weigh(settings):
    """Catch a setting that is silently without effect."""
    vae.Config(**settings)
    with pytest.raises(UserError, match='--objective=iwae does not have'):
        vae.Config(objective='iwae', **settings)


def test_gaussian_density_bounds_the_probability_of_the_pixel():
    """Catch a density reported as if it were a probability, or scaled twice."""
    num_values, num = 5, 2000
    model, _ = _model((1,), image_shape=(1, 1, 1), likelihood='gaussian',
                      num_values=num_values)
    noise = (np.arange(num) + 0.5) / num
    for mean, std in ((0.3, 0.05), (0.5, 0.2), (0.9, 3.0)):
        total = 0.0
        for x in range(num_values):
            target = jnp.asarray((x + noise) / num_values, jnp.float32)
            full = jnp.ones((num, 1, 1, 1))
            params = Gaussian(mean * full, 2 * np.log(std) * full)
            log_px = variational.log_prob(model, params, target.reshape(full.shape), 1)
            edges = stats.norm.cdf(np.array([x, x + 1]) / num_values, mean, std)
            bound, exact = np.exp(float(log_px.mean())), edges[1] - edges[0]
            assert bound <= 1.0001 * exact + 1e-12
            if std == 3.0:
                np.testing.assert_allclose(bound, exact, rtol=1e-3)
            total += bound
        assert total <= 1


def test_mean_image():
    """Catch levels that are off by one, and logits taken for means."""
    model, _ = _model((1,), likelihood='categorical', num_values=3)
    logits = np.random.default_rng(0).normal(size=(2, 2, 2, 1, 3)).astype(np.float32)
    expected = special.softmax(logits, -1) @ np.array([0, 0.5, 1])
    np.testing.assert_allclose(mean_image(model, logits), expected, rtol=1e-5)
    model, _ = _model((1,), likelihood='bernoulli')
    x = mean_image(model, logits[..., 0])
    np.testing.assert_allclose(x, special.expit(logits[..., 0]), rtol=1e-5)
    # The levels of V = 3 and their means in [0, 1], where noise is added to them.
    model, _ = _model((1,), likelihood='gaussian', num_values=3)
    means = jnp.array([-1.0, 0.5 / 3, 1.5 / 3, 2.5 / 3, 2])
    x = mean_image(model, Gaussian(means, jnp.zeros(5)))
    np.testing.assert_allclose(x, [0, 0, 0.5, 1, 1], atol=1e-6)


@pytest.mark.parametrize('fit, wanted, size', [
    (25, 0, 25), (25, 5000, 25), (25, 10, 10), (25, 26, 13), (10, 7, 7), (10, 11, 1),
])
def test_as_many_samples_as_are_wanted(fit, wanted, size):
    """Catch a number of importance samples that is rounded up."""
    assert variational.chunk_size(fit, wanted) == size
    found = variational.chunks(size, wanted, 5000)
    assert found.size * found.num == wanted or not wanted


@pytest.mark.parametrize('binarize, likelihood, num_values', [
    ('none', 'categorical', 17), ('dynamic', 'bernoulli', 2),
    ('threshold', 'bernoulli', 2), ('static', 'bernoulli', 2),
])
def test_likelihood_fits_the_pixels(binarize, likelihood, num_values):
    """Catch a Bernoulli of grey values, whose nats mean nothing."""
    data = sources.load('digits', binarize=binarize)
    model = vae.make_model(vae.Config(binarize=binarize), data)
    assert (model.likelihood, model.num_values) == (likelihood, num_values)
    if binarize == 'none':
        with pytest.raises(UserError, match='digits has 17 values: pass --binarize'):
            vae.make_model(vae.Config(likelihood='bernoulli'), data)


def test_output_starts_from_the_mean_image():
    """Catch logits of another scale of pixels, or of unclipped means."""
    images = np.array([[0, 16, 8, 4], [0, 16, 8, 8]], np.uint8).reshape(2, 2, 2, 1)
    examples = sources.ArrayExamples(images, np.zeros(2, np.int32))
    data = sources.ImageSet(
        name='toy', image_shape=(2, 2, 1), num_values=17, num_classes=0,
        splits={'train': examples, 'test': examples},
    )
    expected = special.logit([0.001, 0.999, 0.5, 0.375])
    np.testing.assert_allclose(vae.pixel_logits(data), expected, atol=1e-5)


def test_bfloat16_keeps_parameters_and_likelihoods_in_float32():
    """Catch parameters, moments or nats that are rounded to eight bits."""
    data = sources.load('digits')
    batch = data.splits['train'].fetch(np.arange(16))
    batch['index'] = np.arange(16, dtype=np.int32)
    losses = {}
    for dtype in ('float32', 'bfloat16'):
        config = vae.Config(
            hidden=(32,), latent_dims=(4,), dtype=dtype, batch_norm=True, ema=0.9
        )
        experiment = vae.build(config, data)
        state, metrics = jax.jit(experiment.train_step)(
            experiment.init(jax.random.key(0)), batch, jax.random.key(1)
        )
        leaves = jax.tree.leaves((state.params, state.ema_params, state.model_state))
        assert {x.dtype for x in leaves} == {jnp.dtype('float32')}
        assert {x.dtype for x in metrics.values()} == {jnp.dtype('float32')}
        losses[dtype] = float(metrics['loss'])
    assert losses['float32'] != losses['bfloat16']
    np.testing.assert_allclose(losses['bfloat16'], losses['float32'], rtol=0.01)


@pytest.mark.parametrize('settings', [
    {'network': 'conv', 'hidden': (4, 4)}, {'latent_dims': (4, 2), 'hidden2': (8,)},
    {'likelihood': 'gaussian'}, {'objective': 'iwae', 'k': 3, 'activation': 'tanh'},
])
def test_every_kind_trains_and_samples(settings):
    """Catch a combination of settings that no other test runs."""
    config = vae.Config(**({'hidden': (16,), 'learning_rate': 1e-2} | settings))
    data = sources.load('digits')
    train = data.splits['train']
    few = sources.ArrayExamples(train.images[:32], train.labels[:32])
    experiment = vae.build(
        config, dataclasses.replace(data, splits={'train': few, 'test': few})
    )
    batch = {**few.fetch(np.arange(32)), 'index': np.arange(32, dtype=np.int32)}
    state, losses = experiment.init(jax.random.key(0)), []
    step = jax.jit(experiment.train_step)
    for _ in range(15):
        state, metrics = step(state, batch, jax.random.key(1))
        losses.append(float(metrics['loss']))
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    rngs = jax.random.split(jax.random.key(2), 3)
    images = jax.jit(experiment.sample)(state, rngs, jnp.arange(len(rngs)))
    assert images.shape == (3, 8, 8, 1) and images.dtype == jnp.uint8


def test_manifold_needs_two_units_with_a_normal_prior():
    """Catch a grid through quantiles of N(0, I) where the prior is another one."""
    def decode(z):
        return np.zeros((len(z), 4, 4, 1), np.uint8)

    images = np.zeros((6, 4, 4, 1), np.uint8)
    for size, normal, drawn in ((2, True, True), (2, False, False), (3, True, False)):
        pictures = vae.make_pictures(
            decode, jnp.zeros((6, size)), images, has_normal_prior=normal
        )
        assert ('manifold' in pictures) == drawn
        assert all(p.ndim == 3 and p.dtype == np.uint8 for p in pictures.values())
