r"""Variational autoencoder, trained on the ELBO or on the importance-weighted bound.

Kingma and Welling 2014, Auto-Encoding Variational Bayes; Burda et al. 2016, Importance
Weighted Autoencoders.

    python -m experiments.vae --workdir=/tmp/vae
    python -m experiments.vae --workdir=/tmp/iwae --preset=iwae_1l --k=5 \
        --data_dir=DIR

The preset iwae_1l is the one-layer network of Burda et al. on dynamically binarized
MNIST, trained on all 60,000 training images (they kept 400 for validation). Published
results after 3280 epochs, with 5000 importance samples: 86.76 nats for k = 1, 85.54 for
k = 5, 84.78 for k = 50.
"""

if __name__ == '__main__':
    from gm_jax import entry

    entry.begin()  # before JAX is imported

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gm_jax import plotting
from gm_jax.data import binarize, pipeline
from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.families import density, variational
from gm_jax.families.density import Density, Mode
from gm_jax.families.variational import Terms, mean_image, posterior_terms
from gm_jax.keys import Use, derive, fold_in_each
from gm_jax.layers.pixels import to_uint8, unit_interval
from gm_jax.losses import dequantization, elbo, likelihoods
from gm_jax.models.vae import VAE
from gm_jax.sampling import latent
from gm_jax.training import command, settings
from gm_jax.training.contracts import Codes, Experiment, HostBatch, Pictures
from gm_jax.training.settings import Sizes, field
from gm_jax.training.train_state import Batch, Metrics, ModelState, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(settings.Config):
    """Settings of the VAE."""

    num_steps: int = field(1500, 'training steps', low=1)
    eval_every: int = field(500, 'steps between evaluations', low=1, free=True)
    checkpoint_every: int = field(
        500, 'steps between checkpoints', low=1, free=True
    )
    network: str = field(
        'auto', 'network between x and the first latent layer; auto: mlp for images of '
        'up to 1024 values, conv for larger ones', choices=('auto', 'mlp', 'conv'),
    )
    hidden: Sizes = field(
        (), 'widths of the layers of an mlp, by default 256,256, or feature maps of a '
        'conv, by default 32,64'
    )
    latent_dims: Sizes = field(
        (16,), 'size of z; for two layers the sizes of z1 and z2, e.g. 100,50'
    )
    hidden2: Sizes = field((100, 100), 'widths of the layers between z1 and z2')
    activation: str = field('relu', 'nonlinearity', choices=('relu', 'tanh'))
    batch_norm: bool = field(False, 'normalise activations over the batch')
    dropout: float = field(0.0, 'share of activations dropped', low=0.0, high=0.99)
    likelihood: str = field(
        'auto', 'p(x|z); auto: bernoulli for binary pixels, categorical for others',
        choices=('auto', 'bernoulli', 'categorical', 'gaussian'),
    )
    objective: str = field(
        'elbo', 'bound to maximise: elbo averages k samples, iwae weights them',
        choices=('elbo', 'iwae'),
    )
    k: int = field(1, 'posterior samples per image in training', low=1, high=10_000)
    beta: float = field(1.0, 'weight of the KL term', low=0.0)
    kl_warmup_steps: int = field(0, 'steps over which beta rises from 0', low=0)
    free_bits: float = field(
        0.0, 'nats of KL per latent unit that cost nothing', low=0.0
    )
    test_samples: int = field(
        0, 'importance samples per image in the final evaluation; 0: up to 5000, as '
        'many as take ten minutes or a tenth of the time of training', low=0, free=True,
    )

    @property
    def without_effect(self) -> dict[str, str]:
        """The settings that change nothing beside the others, and why, by name."""
        found = super().without_effect
        if len(self.latent_dims) == 1:
            found['hidden2'] = 'needs two latent layers, such as --latent_dims=100,50'
        return found

    @property
    def of_the_network(self) -> tuple[str, ...]:
        """The settings that change the network, but not the sizes of its arrays."""
        return ('activation',)

    def __post_init__(self) -> None:
        """Raise UserError for settings that contradict each other."""
        super().__post_init__()
        if len(self.latent_dims) > 2:
            raise UserError(
                f'--latent_dims={settings.text(self.latent_dims)}: at most two layers.'
            )
        if self.objective == 'iwae' and (
            self.beta != 1.0 or self.kl_warmup_steps or self.free_bits
        ):
            raise UserError(
                '--beta, --kl_warmup_steps and --free_bits weigh the KL term, which '
                '--objective=iwae does not have.'
            )


PRESETS = {
    'iwae_1l': Config(
        dataset='mnist', binarize='dynamic', hidden=(200, 200), latent_dims=(50,),
        activation='tanh', objective='iwae', batch_size=20, num_steps=9_840_000,
        schedule='stages', adam_eps=1e-4, eval_every=60_000, log_every=3_000,
        checkpoint_every=15_000, eval_batch_size=100, test_samples=5000,
    ),
    'iwae_2l': Config(
        dataset='mnist', binarize='dynamic', hidden=(200, 200), hidden2=(100, 100),
        latent_dims=(100, 50), activation='tanh', objective='iwae', batch_size=20,
        num_steps=9_840_000, schedule='stages', adam_eps=1e-4, eval_every=60_000,
        log_every=3_000, checkpoint_every=15_000, eval_batch_size=100,
        test_samples=5000,
    ),
    'manifold': Config(latent_dims=(2,), hidden=(512, 512), num_steps=8000),
}

# Images of more values have a convolutional network by default; the sizes of each.
_MLP_VALUES, _HIDDEN = 1024, {'mlp': (256, 256), 'conv': (32, 64)}
# Importance samples that are decoded together: as many as fit well into the caches, and
# fewer of images of more logits than these.
TEST_CHUNKS, CHUNK_LOGITS = (25, 5, 1), 25 * 784 * 256
# The most importance samples, by default.
TEST_SAMPLES = 5000


class Setting(NamedTuple):
    """What the functions of the experiment have in common.

    Attributes:
        config: the settings.
        data: the image set.
        model: the networks.
    """

    config: Config
    data: ImageSet
    model: VAE


def build(config: Config, data: ImageSet) -> Experiment:
    """Make the experiment."""
    s = Setting(config, data, make_model(config, data))
    chunks = variational.chunks(chunk_size(s), config.test_samples, TEST_SAMPLES)
    num_dims = math.prod(data.image_shape)
    bound = Density(
        init=functools.partial(init, s),
        terms=functools.partial(compute_terms, s),
        loss=functools.partial(loss, s),
        numbers=functools.partial(numbers, s),
        estimates=variational.estimates,
        report=functools.partial(variational.report, num_dims, chunks.size),
        num_chunks=chunks.num,
        fewer_chunks=chunks.fewer,
        chunk_size=chunks.size,
        log_prob='log_w',
    )
    experiment = density.build(
        config,
        bound,
        sample=functools.partial(sample, s),
        sampler='z from the prior, mean of p(x|z)',
        pictures=functools.partial(pictures, s),
        single_steps=s.model.network == 'conv',
    )
    return experiment._replace(codes=Codes(
        functools.partial(encode, s), functools.partial(decode, s),
        functools.partial(encode, s), config.latent_dims[0],
    ))


def make_model(config: Config, data: ImageSet) -> VAE:
    """Make the networks for a data set.

    Raises:
        UserError: the likelihood does not fit the pixels.
    """
    num_values, choice = binarize.num_values(data), config.likelihood
    if choice == 'auto':
        choice = 'bernoulli' if num_values == 2 else 'categorical'
    if choice == 'bernoulli' and num_values != 2:
        raise UserError(
            f'--likelihood=bernoulli needs pixels of 0 and 1, and {data.name} has '
            f'{data.num_values} values: pass --binarize, or another likelihood.'
        )
    network = config.network
    if network == 'auto':
        # The last layer of an mlp has a weight for each unit and each logit.
        network = 'mlp' if math.prod(data.image_shape) <= _MLP_VALUES else 'conv'
    return VAE(
        image_shape=data.image_shape,
        num_values=num_values,
        likelihood=choice,
        network=network,
        hidden=config.hidden or _HIDDEN[network],
        hidden2=config.hidden2,
        latent_dims=config.latent_dims,
        activation={'relu': nn.relu, 'tanh': jnp.tanh}[config.activation],
        batch_norm=config.batch_norm,
        dropout=config.dropout,
        dtype=jnp.dtype(config.dtype),
    )


def chunk_size(s: Setting) -> int:
    """Return how many importance samples the final evaluation decodes together."""
    outputs = {'bernoulli': 1, 'gaussian': 2, 'categorical': s.model.num_values}
    logits = math.prod(s.data.image_shape) * outputs[s.model.likelihood]
    fit = next((n for n in TEST_CHUNKS if n * logits <= CHUNK_LOGITS), TEST_CHUNKS[-1])
    return variational.chunk_size(fit, s.config.test_samples)


def init(s: Setting, rng: jax.Array) -> dict[str, Any]:
    """Make the variables; the output starts from the mean image."""
    variables = dict(s.model.init(rng, jnp.zeros((1, *s.data.image_shape))))
    if s.model.likelihood == 'bernoulli' and s.model.network == 'mlp':
        variables['params']['output']['bias'] = pixel_logits(s.data)
    return variables


def pixel_logits(data: ImageSet) -> jax.Array:
    """Return the log-odds of each pixel's mean, clipped to [0.001, 0.999], [H W C].

    The output starts from there, so that the network need not learn it (as in Burda et
    al.'s code). The mean is over 10,000 training images at most.
    """
    images = pipeline.first_images(data, 10_000)
    mean = images.mean(axis=0, dtype=np.float64) / (data.num_values - 1)
    mean = np.clip(mean, 0.001, 0.999)
    return jnp.asarray(np.log(mean / (1 - mean)).ravel(), jnp.float32)


def prepare(
    s: Setting, image: jax.Array, rngs: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the input of the encoder, in [0, 1], and the target of the likelihood."""
    image = binarize.integers(derive(rngs, Use.PIXELS), image, s.data)
    # Flat, because XLA on the CPU vectorises the last axis: for grey images, 1 channel.
    flat = unit_interval(image.reshape(len(image), -1), s.model.num_values)
    x = flat.reshape(image.shape)
    if s.model.likelihood != 'gaussian':
        return x, image
    noise_rngs = derive(rngs, Use.DEQUANTIZATION)
    return x, dequantization.uniform(noise_rngs, image, num_values=s.model.num_values)


def compute_terms(
    s: Setting, variables: dict[str, Any], batch: Batch, rngs: jax.Array, mode: Mode
) -> tuple[Terms, ModelState]:
    """Compute the terms of the bounds of a batch; see `density.TermsFn`."""
    if not mode.train:
        num = chunk_size(s) if mode.final else s.config.k
        return evaluate(s, variables, batch, rngs, num, mode.chunk), {}
    x, target = prepare(s, batch['image'], rngs)
    return nn.apply(posterior_terms, s.model, mutable=['batch_stats'])(
        variables, x, target, rngs, s.config.k,
        train=True, dropout_rng=derive(rngs, Use.DROPOUT), axis_name=mode.axis_name,
    )


def evaluate(
    s: Setting, variables: dict[str, Any], batch: Batch, rngs: jax.Array, num: int,
    chunk: jax.Array,
) -> Terms:
    """Compute the terms outside training, with different samples in each chunk."""
    x, target = prepare(s, batch['image'], rngs)
    latent_rngs = fold_in_each(rngs, chunk)
    return nn.apply(posterior_terms, s.model)(variables, x, target, latent_rngs, num)


def loss(s: Setting, terms: Terms, mode: Mode) -> tuple[jax.Array, Metrics]:
    """Compute minus the bound, averaged over the batch, and its terms."""
    return objective(s.config, terms, mode.step, mode.axis_name)


def objective(
    config: Config, terms: Terms, step: jax.Array, axis_name: str | None
) -> tuple[jax.Array, Metrics]:
    """Compute minus the bound that the settings choose, and its terms."""
    beta = jnp.float32(config.beta)
    if config.kl_warmup_steps:
        beta *= jnp.minimum(1.0, (step + 1) / config.kl_warmup_steps)
    loss, metrics = variational.negative_elbo(
        terms, beta=beta, free_bits=config.free_bits, axis_name=axis_name
    )
    if config.objective == 'iwae':
        loss = -elbo.iwae_bound(terms.log_w.T).mean()
    return loss, metrics


def numbers(s: Setting, terms: Terms) -> dict[str, jax.Array]:
    """Return the numbers of an evaluation during training.

    The loss is that of training without free bits, and with the final weight of KL.
    """
    log_px, kl = terms.log_px.mean(1), terms.kl.sum(1)
    loss = -elbo.elbo(log_px, kl, beta=s.config.beta)
    if s.config.objective == 'iwae':
        loss = -elbo.iwae_bound(terms.log_w.T)
    return {**variational.parts(log_px, kl), 'loss': loss}


def sample(
    s: Setting, state: TrainState, rngs: jax.Array, index: jax.Array
) -> jax.Array:
    """Draw z from the prior and decode it."""
    del index
    two_layers = len(s.model.latent_dims) == 2
    top_rngs = derive(rngs, Use.LATENT_2 if two_layers else Use.LATENT)
    z = latent.prior_sample(top_rngs, s.model.latent_dims[-1])
    if two_layers:
        p1 = s.model.apply(state.eval_variables, z, method=VAE.decode2)
        z = likelihoods.gaussian_sample(derive(rngs, Use.LATENT), *p1)
    return decode(s, state, z)


def encode(
    s: Setting, state: TrainState, image: jax.Array, rngs: jax.Array
) -> jax.Array:
    """Return the means [B, Z1] of q(z1|x)."""
    x, _ = prepare(s, image, rngs)
    return s.model.apply(state.eval_variables, x, method=VAE.encode).mean


def decode(s: Setting, state: TrainState, z: jax.Array) -> jax.Array:
    """Decode z1 [N, Z1] to the mean of p(x|z1) as uint8 [N, H, W, C]."""
    def mean(bound: VAE, z: jax.Array) -> jax.Array:
        return mean_image(bound, bound.decode(z))

    x = nn.apply(mean, s.model)(state.eval_variables, z)
    return to_uint8(x)


def pictures(
    s: Setting, state: TrainState, batch: HostBatch, rng: jax.Array
) -> Pictures:
    """Draw the pictures of a trained model."""
    def encode(variables: dict[str, Any], batch: Batch, rng: jax.Array) -> jax.Array:
        rngs, chunk = fold_in_each(rng, batch['index']), jnp.zeros_like(batch['index'])
        return evaluate(s, variables, batch, rngs, 1, chunk).mean

    return make_pictures(
        functools.partial(jax.jit(functools.partial(decode, s)), state),
        jax.jit(encode)(state.eval_variables, batch, rng),
        plotting.to_uint8(np.asarray(batch['image']), num_values=s.data.num_values),
        has_normal_prior=len(s.model.latent_dims) == 1,
    )


def make_pictures(
    decode: Callable[[jax.Array], jax.Array], means: jax.Array, images: np.ndarray, *,
    has_normal_prior: bool,
) -> Pictures:
    """Draw reconstructions, the 2-D manifold and traversals of the active units.

    Args:
        decode: z [N, Z] -> uint8 [N, H, W, C].
        means: [B, Z] posterior means of `images`.
        images: [B, H, W, C] uint8.
        has_normal_prior: whether p(z) is N(0, I), whose quantiles the manifold shows.

    Returns:
        Pictures by name, uint8 [H, W, C] each.
    """
    drawn = {
        'reconstructions': plotting.reconstructions(
            images[:30], np.asarray(decode(means[:30]))
        )
    }
    if means.shape[1] == 2 and has_normal_prior:
        drawn['manifold'] = picture_of_manifold(decode)
    active = np.argsort(-np.var(np.asarray(means), axis=0))[:8].tolist()
    values = jnp.linspace(-3.0, 3.0, 11)
    rows = np.asarray(latent.traverse(decode, means[0], active, values))
    grid = plotting.image_grid(
        rows.reshape(-1, *images.shape[1:]), columns=len(values)
    )
    drawn['traversals'] = plotting.with_axes(
        grid, rows=[str(unit) for unit in active],
        columns=[f'{value:.1f}' for value in values], xlabel='value of the unit',
        ylabel='latent unit', title='One latent unit changes at a time',
    )
    return drawn


def picture_of_manifold(decode: Callable[[jax.Array], jax.Array]) -> np.ndarray:
    """Draw what z [N, 2] decode to, over the quantiles of the prior."""
    num, low, high = 20, 0.05, 0.95
    rows = np.asarray(latent.manifold(decode, num, low=low, high=high))
    shares = [f'{100 * share:.0f}' for share in np.linspace(low, high, num)]
    return plotting.with_axes(
        plotting.manifold(rows), rows=shares[::-1], columns=shares,
        xlabel='quantile of latent unit 0 (%)', ylabel='quantile of latent unit 1 (%)',
        title='Images over the plane of the two latent units',
    )


main = command.Command('vae', __doc__, Config, PRESETS, build)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
