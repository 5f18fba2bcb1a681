"""Variational autoencoder, trained on the ELBO or on the importance-weighted bound.

Kingma and Welling 2014, Auto-Encoding Variational Bayes; Burda et al. 2016, Importance
Weighted Autoencoders.

    python -m experiments.vae --workdir=/tmp/vae
    python -m experiments.vae --workdir=/tmp/iwae --preset=iwae_1l --k=5 \\
        --data_dir=DIR

The preset iwae_1l is the one-layer network of Burda et al. on dynamically binarized
MNIST, on all 60,000 training images, where they kept 400 to validate. Published after
3280 epochs, by 5000 importance samples: 86.76 nats for k = 1, 85.54 for k = 5, 84.78
for k = 50.
"""

import dataclasses
import functools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gm_jax import plotting
from gm_jax.data import binarize, pipeline, sources
from gm_jax.errors import UserError
from gm_jax.evaluation import likelihood
from gm_jax.losses import elbo, likelihoods
from gm_jax.models.vae import VAE, Gaussian
from gm_jax.sampling import latent
from gm_jax.training import config as config_lib
from gm_jax.training import loop, optimizer
from gm_jax.training import state as state_lib
from gm_jax.training.config import field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config_lib.Config):
    """Settings of the VAE."""

    num_steps: int = field(1500, 'training steps', low=1)
    eval_every: int = field(500, 'steps between evaluations', low=1, free=True)
    checkpoint_every: int = field(
        500, 'steps between checkpoints', low=1, free=True
    )
    network: str = field(
        'mlp', 'between x and the first latent', choices=('mlp', 'conv')
    )
    hidden: str = field('256,256', 'widths of that network; maps, for conv')
    latent_dims: str = field('16', 'size of z; of z1 and z2 for two layers: 100,50')
    hidden2: str = field('100,100', 'widths between z1 and z2')
    activation: str = field('relu', 'nonlinearity', choices=('relu', 'tanh'))
    batch_norm: bool = field(False, 'normalise activations over the batch')
    dropout: float = field(0.0, 'rate of dropped activations', low=0.0, high=0.99)
    likelihood: str = field(
        'auto', 'p(x|z); auto: bernoulli for binary pixels, categorical for others',
        choices=('auto', 'bernoulli', 'categorical', 'gaussian'),
    )
    objective: str = field(
        'elbo', 'bound to maximise: elbo averages k samples, iwae weights them',
        choices=('elbo', 'iwae'),
    )
    k: int = field(1, 'posterior samples an image in training', low=1)
    beta: float = field(1.0, 'weight of the KL term', low=0.0)
    kl_warmup_steps: int = field(0, 'steps over which beta rises from 0', low=0)
    free_bits: float = field(0.0, 'nats of KL granted to each latent unit', low=0.0)
    test_samples: int = field(
        5000, 'importance samples an image in the final evaluation', low=1, free=True
    )

    def __post_init__(self) -> None:
        """Raises UserError for settings that contradict each other."""
        super().__post_init__()
        for name in ('hidden', 'hidden2', 'latent_dims'):
            config_lib.sizes(getattr(self, name), name)
        if len(config_lib.sizes(self.latent_dims, 'latent_dims')) > 2:
            raise UserError(f'--latent_dims={self.latent_dims}: at most two layers.')
        if self.objective == 'iwae' and (
            self.beta != 1.0 or self.kl_warmup_steps or self.free_bits
        ):
            raise UserError(
                '--beta, --kl_warmup_steps and --free_bits weigh the KL term, which '
                '--objective=iwae does not have.'
            )


PRESETS = {
    'iwae_1l': Config(
        dataset='mnist', binarize='dynamic', hidden='200,200', latent_dims='50',
        activation='tanh', objective='iwae', batch_size=20, num_steps=9_840_000,
        schedule='stages', adam_eps=1e-4, eval_every=60_000, log_every=3_000,
        checkpoint_every=15_000, eval_batch_size=100,
    ),
    'iwae_2l': Config(
        dataset='mnist', binarize='dynamic', hidden='200,200', hidden2='100,100',
        latent_dims='100,50', activation='tanh', objective='iwae', batch_size=20,
        num_steps=9_840_000, schedule='stages', adam_eps=1e-4, eval_every=60_000,
        log_every=3_000, checkpoint_every=15_000, eval_batch_size=100,
    ),
    'manifold': Config(latent_dims='2', hidden='512,512', num_steps=8000),
}

# Importance samples that are decoded together: as many as the caches like.
TEST_CHUNK = 25


class Terms(NamedTuple):
    """The terms of the bounds, for S samples of the posterior of each example."""

    log_px: jax.Array  # [B, S] log p(x|z1)
    kl: jax.Array  # [B, Z] of each unit, of all layers; a sample's mean where not exact
    log_w: jax.Array  # [B, S] log p(x, z) - log q(z|x)
    mean: jax.Array  # [B, Z1] means of q(z1|x)


def posterior_terms(
    model: VAE,
    x: jax.Array,
    target: jax.Array,
    rngs: jax.Array,
    num: int,
    **mode: Any,
) -> Terms:
    """Draws z from q(z|x) and computes every term of the bounds.

    Args:
        model: a bound VAE (see flax.linen.apply).
        x: [B, H, W, C] in [0, 1], what the encoder sees.
        target: [B, H, W, C], what the likelihood is of.
        rngs: [B] one key an example.
        num: S.
        **mode: train, dropout_rngs, axis_name for the networks.

    Returns:
        Terms.
    """
    def each(values: jax.Array) -> jax.Array:  # [B * S, ...] -> [B, S, ...]
        return values.reshape(len(rngs), num, *values.shape[1:])

    def draw(q: Gaussian, layer: int) -> jax.Array:  # -> [B * S, Z]
        layer_rngs = jax.vmap(jax.random.fold_in, (0, None))(rngs, layer)
        z = likelihoods.gaussian_sample(layer_rngs, each(q.mean), each(q.logvar))
        return z.reshape(q.mean.shape)

    q = model.encode(x, **mode)
    q1 = jax.tree.map(lambda a: jnp.repeat(a, num, axis=0), q)
    z1 = draw(q1, 1)
    log_px = each(log_prob(model, model.decode(z1, **mode), target, num))
    if len(model.latent_dims) == 1:
        kl = elbo.gaussian_kl_per_unit(q.mean, q.logvar)
        log_ratio = per_unit(q1, z1) - per_unit(standard_normal(z1), z1)
        return Terms(log_px, kl, log_px - each(log_ratio).sum(-1), q.mean)
    q2 = model.encode2(z1, **mode)
    z2 = draw(q2, 2)
    log_ratio1 = per_unit(q1, z1) - per_unit(model.decode2(z2, **mode), z1)
    log_ratio2 = per_unit(q2, z2) - per_unit(standard_normal(z2), z2)
    log_ratio = each(jnp.concatenate([log_ratio1, log_ratio2], axis=-1))
    kl2 = elbo.gaussian_kl_per_unit(q2.mean, q2.logvar)
    kl = each(jnp.concatenate([log_ratio1, kl2], axis=-1)).mean(1)
    return Terms(log_px, kl, log_px - log_ratio.sum(-1), q.mean)


def per_unit(p: Gaussian, z: jax.Array) -> jax.Array:
    """Computes the log density of each unit, [N, Z]: `gaussian_log_prob` unsummed."""
    flat = likelihoods.gaussian_log_prob(p.mean.ravel(), p.logvar.ravel(), z.ravel())
    return flat.reshape(z.shape)


def standard_normal(z: jax.Array) -> Gaussian:
    """Returns the prior N(0, I) of a top latent like z."""
    return Gaussian(jnp.zeros_like(z), jnp.zeros_like(z))


def log_prob(model: VAE, params: Any, target: jax.Array, num: int) -> jax.Array:
    """Computes log p(x|z) of each example under each of its `num` samples, [B * S].

    A Gaussian is a density, so it is of dequantized x, (x + u) / V: its mean over u
    bounds the probability of the pixel from below once V is divided out again.
    """
    flat = target.reshape(len(target), -1)  # as in binarize_dynamic
    target = jnp.repeat(flat, num, axis=0).reshape(-1, *model.image_shape)
    if model.likelihood == 'gaussian':
        log_density = likelihoods.gaussian_log_prob(*params, target)
        return log_density - np.prod(model.image_shape) * np.log(model.num_values)
    if model.likelihood == 'categorical':
        return likelihoods.categorical_log_prob(params, target)
    return likelihoods.bernoulli_log_prob(params, target)


def mean_image(model: VAE, params: Any) -> jax.Array:
    """Returns the mean of p(x|z) as an image in [0, 1], [N, H, W, C]."""
    if model.likelihood == 'gaussian':
        return jnp.clip(params.mean, 0.0, 1.0)
    if model.likelihood == 'categorical':
        levels = jnp.linspace(0.0, 1.0, model.num_values)
        return jnp.einsum('...v,v->...', jax.nn.softmax(params), levels)
    return jax.nn.sigmoid(params)


def make_model(config: Config, data: sources.ImageSet) -> VAE:
    """Makes the model for a data set.

    Raises:
        UserError: the likelihood does not fit the pixels.
    """
    binary = binarize.num_values(data) == 2
    choice = config.likelihood
    if choice == 'auto':
        choice = 'bernoulli' if binary else 'categorical'
    if choice == 'bernoulli' and not binary:
        raise UserError(
            f'--likelihood=bernoulli needs pixels of 0 and 1, and {data.name} has '
            f'{data.num_values} values: pass --binarize, or another likelihood.'
        )
    return VAE(
        image_shape=data.image_shape,
        num_values=binarize.num_values(data),
        likelihood=choice,
        network=config.network,
        hidden=config_lib.sizes(config.hidden, 'hidden'),
        hidden2=config_lib.sizes(config.hidden2, 'hidden2'),
        latent_dims=config_lib.sizes(config.latent_dims, 'latent_dims'),
        activation={'relu': nn.relu, 'tanh': jnp.tanh}[config.activation],
        batch_norm=config.batch_norm,
        dropout=config.dropout,
        dtype=jnp.dtype(config.dtype),
    )


def build(config: Config, data: sources.ImageSet) -> loop.Experiment:
    """Makes the pure functions of the experiment."""
    model = make_model(config, data)

    def prepare(image: jax.Array, rngs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Turns integers into what the encoder sees and what the likelihood is of."""
        image = binarize.integers(rngs, image, data)
        flat = image.reshape(len(image), -1).astype(jnp.float32)
        x = (flat / (model.num_values - 1)).reshape(image.shape)
        if model.likelihood != 'gaussian':
            return x, image
        noise = jax.vmap(lambda rng: jax.random.uniform(rng, image.shape[1:]))(rngs)
        return x, (image + noise) / model.num_values

    def init(rng: jax.Array) -> state_lib.TrainState:
        variables = model.init(rng, jnp.zeros((1, *data.image_shape)))
        params = variables['params']
        if model.likelihood == 'bernoulli' and model.network == 'mlp':
            params['output']['bias'] = pixel_logits(data)
        return state_lib.create(
            params, optimizer.make(config), ema=config.ema > 0,
            model_state={k: v for k, v in variables.items() if k != 'params'},
        )

    def loss_fn(params, model_state, batch, rngs, *, step, axis_name):
        pixel_rngs, noise_rngs, dropout_rngs = state_lib.split_each(rngs, 3)
        x, target = prepare(batch['image'], pixel_rngs)
        terms, updated = nn.apply(posterior_terms, model, mutable=['batch_stats'])(
            {'params': params, **model_state},
            x, target, noise_rngs, config.k,
            train=True, dropout_rngs=dropout_rngs, axis_name=axis_name,
        )
        loss, metrics = objective(config, terms, step, axis_name)
        return state_lib.LossOutput(loss, metrics, updated)

    def evaluate(state, batch, rng, num, chunk):
        rngs = state_lib.fold_in_each(rng, batch['index'])
        pixel_rngs, noise_rngs = state_lib.split_each(rngs, 2)
        noise_rngs = jax.vmap(jax.random.fold_in)(noise_rngs, chunk)
        x, target = prepare(batch['image'], pixel_rngs)
        return nn.apply(posterior_terms, model)(
            state.eval_variables, x, target, noise_rngs, num
        )

    def eval_step(state, batch, rng):
        terms = evaluate(state, batch, rng, config.k, jnp.zeros_like(batch['index']))
        log_px, kl = terms.log_px.mean(1), terms.kl.sum(1)
        bound = elbo.elbo(log_px, kl)
        metrics = {'log_px': log_px, 'kl': kl, 'elbo': bound, 'loss': -bound}
        if config.objective == 'iwae':
            metrics['loss'] = -elbo.iwae_bound(terms.log_w.T)
        return metrics

    def test_step(state, batch, rng):
        num = min(TEST_CHUNK, config.test_samples)
        terms = evaluate(state, batch, rng, num, batch['chunk'])
        return {
            'log_w': elbo.iwae_bound(terms.log_w.T), 'mean': terms.mean,
            'log_px': terms.log_px.mean(1), 'kl': terms.kl,
        }

    def summarize(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        kl = arrays['kl'].mean(axis=0, dtype=np.float64)
        activity = arrays['mean'].var(axis=0, dtype=np.float64)
        samples = arrays['log_w'].shape[1] * min(TEST_CHUNK, config.test_samples)
        log_px = likelihood.combine(arrays['log_w'])
        num_dims = int(np.prod(data.image_shape))
        expected = float(arrays['log_px'].mean(dtype=np.float64))
        return {
            **likelihood.report(log_px, num_dims, f'iwae-{samples}'),
            'elbo_nats': float(kl.sum()) - expected,
            'reconstruction_nats': -expected,
            'kl_nats': float(kl.sum()),
            'active_units': int((activity > 0.01).sum()),
            'kl_per_unit': kl.round(4).tolist(),
            'activity_per_unit': activity.round(4).tolist(),
        }

    def decode_images(state: state_lib.TrainState, z: jax.Array) -> jax.Array:
        """Decodes z1 [N, Z1] to the mean of p(x|z1) as uint8 [N, H, W, C]."""
        def decode(bound: VAE, z: jax.Array) -> jax.Array:
            return mean_image(bound, bound.decode(z))
        x = nn.apply(decode, model)(state.eval_variables, z)
        return jnp.round(255 * x).astype(jnp.uint8)

    def sample(
        state: state_lib.TrainState, rngs: jax.Array, index: jax.Array
    ) -> jax.Array:
        del index
        prior_rngs, layer_rngs = state_lib.split_each(rngs, 2)
        z = latent.prior_sample(prior_rngs, model.latent_dims[-1])
        if len(model.latent_dims) == 2:
            p1 = model.apply(state.eval_variables, z, method=VAE.decode2)
            z = likelihoods.gaussian_sample(layer_rngs, *p1)
        return decode_images(state, z)

    def pictures(state, batch, rng):
        return make_pictures(
            lambda z: jax.jit(decode_images)(state, z),
            jax.jit(evaluate, static_argnums=3)(
                state, batch, rng, 1, jnp.zeros_like(batch['index'])
            ).mean,
            plotting.to_uint8(batch['image'], num_values=data.num_values),
            has_normal_prior=len(model.latent_dims) == 1,
        )

    return loop.Experiment(
        init=init,
        train_step=state_lib.make_train_step(loss_fn, ema_decay=config.ema),
        eval_step=eval_step,
        test_step=test_step,
        test_chunks=-(-config.test_samples // TEST_CHUNK),
        summarize=summarize,
        sample=sample,
        sampler='z from the prior, mean of p(x|z)',
        pictures=pictures,
        convolutional=model.network == 'conv',
    )


def objective(
    config: Config, terms: Terms, step: jax.Array, axis_name: str | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes minus the bound, averaged over the batch, and its terms."""
    log_px, kl = terms.log_px.mean(1), terms.kl.sum(1)
    metrics = {'log_px': log_px.mean(), 'kl': kl.mean()}
    if config.objective == 'iwae':
        return -elbo.iwae_bound(terms.log_w.T).mean(), metrics
    beta = jnp.float32(config.beta)
    if config.kl_warmup_steps:
        beta *= jnp.minimum(1.0, (step + 1) / config.kl_warmup_steps)
    if config.free_bits:
        cost = elbo.free_bits(terms.kl, config.free_bits, axis_name=axis_name)
        return beta * cost - log_px.mean(), metrics
    return -elbo.elbo(log_px, kl, beta=beta).mean(), metrics


def make_pictures(
    decode: Any, means: jax.Array, images: np.ndarray, *, has_normal_prior: bool
) -> dict[str, np.ndarray]:
    """Draws reconstructions, the 2-D manifold and traversals of the active units.

    Args:
        decode: z [N, Z] -> uint8 [N, H, W, C].
        means: [B, Z] posterior means of `images`.
        images: [B, H, W, C] uint8.
        has_normal_prior: whether p(z) is N(0, I), whose quantiles the manifold takes.

    Returns:
        Pictures by name, uint8 [H, W, C] each.
    """
    pictures = {
        'reconstructions': plotting.reconstructions(
            images[:30], np.asarray(decode(means[:30]))
        )
    }
    if means.shape[1] == 2 and has_normal_prior:
        pictures['manifold'] = plotting.manifold(latent.manifold(decode, 20))
    active = np.argsort(-np.var(np.asarray(means), axis=0))[:8]
    values = jnp.linspace(-3.0, 3.0, 11)
    rows = latent.traverse(decode, means[0], active, values)
    rows = np.asarray(rows).reshape(-1, *images.shape[1:])
    pictures['traversals'] = plotting.image_grid(rows, columns=len(values))
    return pictures


def pixel_logits(data: sources.ImageSet) -> jax.Array:
    """Returns the log-odds of each pixel's mean, clipped to [0.001, 0.999], [H W C].

    Where the output starts from, so that the network need not learn it (Burda et al.'s
    code); of 10,000 training images at most.
    """
    images = pipeline.first_images(data, 10_000)
    mean = images.mean(axis=0, dtype=np.float64) / (data.num_values - 1)
    mean = np.clip(mean, 0.001, 0.999)
    return jnp.asarray(np.log(mean / (1 - mean)).ravel(), jnp.float32)


main = functools.partial(
    loop.main, module='vae', about=__doc__, config_class=Config, presets=PRESETS,
    build=build,
)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
