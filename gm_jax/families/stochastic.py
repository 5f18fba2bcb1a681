"""The chain of a generative stochastic network, and the settings that decide it."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.data import binarize
from gm_jax.data.binarize import WAYS
from gm_jax.data.image_set import ImageSet
from gm_jax.families import chains
from gm_jax.keys import Use, derive, fold_in_each
from gm_jax.losses import likelihoods
from gm_jax.models.gsn import GSN, Hidden, Noise
from gm_jax.sampling import walkback
from gm_jax.sampling.gibbs import uniforms
from gm_jax.training.settings import Sizes, field

__all__ = [
    'Config', 'draw_noise', 'first_images', 'flat', 'from_start', 'make_model',
    'reconstruct', 'run_chain', 'Setting',
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(chains.Config):
    """Settings of the generative stochastic network."""

    binarize: str = field(
        'threshold',
        'make pixels 0 or 1: x >= V/2 (threshold), one fixed draw (static) or a fresh '
        'draw at each step (dynamic); none for a set that is binary, or to take grey '
        'levels for probabilities', choices=WAYS,
    )
    num_steps: int = field(4000, 'training steps', low=1)
    learning_rate: float = field(3e-3, 'peak learning rate', low=0.0)
    batch_size: int = field(
        100, 'examples per step, over all devices of all processes', low=1
    )
    eval_every: int = field(1000, 'steps between evaluations', low=1, free=True)
    checkpoint_every: int = field(
        1000, 'steps between checkpoints', low=1, free=True
    )
    eval_batch_size: int = field(
        1000, 'examples per evaluation step; the final evaluation runs its chains anew '
        'for each such step; 0: the batch size', low=0, free=True,
    )
    layers: Sizes = field(
        (200, 200), 'units of each hidden layer; one layer is a denoising autoencoder'
    )
    activation: str = field('tanh', 'nonlinearity', choices=('tanh', 'sigmoid'))
    input_noise: float = field(
        0.4, 'share of pixels that a step of the chain replaces by coin flips',
        low=0.0, high=1.0,
    )
    hidden_noise: float = field(
        1.0, 'standard deviation of the noise before and after the nonlinearity, in '
        'all hidden layers but the first; in the paper 2', low=0.0,
    )
    walkbacks: int = field(
        4, 'steps of the chain that training runs from each image; 1: no walkback',
        low=1, high=1000,
    )
    chain_steps: int = field(
        1000, 'steps of the chain to an image that is generated, or to the first state '
        'that is used, which is --thin if that is more', low=1,
        high=1_000_000, free=True,
    )
    thin: int = field(
        10, 'steps between the states of a chain that are used', low=1,
        high=1_000_000, free=True,
    )
    test_samples: int = field(
        0, 'states of the chain in the final evaluation of binary images, rounded up '
        'to hundreds above 100 and to thousands above 1,000; 0: up to 10,000, as many '
        'as take ten minutes or a tenth of the time of training',
        low=0, free=True,
    )
    parzen_samples: int = field(
        1000, 'samples, k-means centroids and training images that are compared by '
        'Parzen windows; 0: no such comparison', low=0, high=100_000,
        evaluation_only=True,
    )
    classifier: str = field(
        '', 'work directory of the experiment `classifier` on the same set, which '
        'counts how often chains change their class', evaluation_only=True,
    )

    @property
    def without_effect(self) -> dict[str, str]:
        """The settings that change nothing beside the others, and why, by name."""
        found = super().without_effect
        if len(self.layers) == 1:
            found['hidden_noise'] = 'needs a layer above the first, by --layers'
        return found

    @property
    def of_the_network(self) -> tuple[str, ...]:
        """The settings that change the network, but not the sizes of its arrays."""
        return ('activation',)


class Setting(NamedTuple):
    """What the functions of the experiment have in common.

    Attributes:
        config: the settings.
        data: the image set.
        model: the network.
    """

    config: Config
    data: ImageSet
    model: GSN

    @property
    def is_binary(self) -> bool:
        """Whether the images are bits, so that the network gives their probability."""
        return binarize.num_values(self.data) == 2


def make_model(config: Config, data: ImageSet) -> GSN:
    """Make the network for a data set."""
    return GSN(
        num_dims=math.prod(data.image_shape),
        layers=config.layers,
        activation={'tanh': jnp.tanh, 'sigmoid': jax.nn.sigmoid}[config.activation],
        dtype=jnp.dtype(config.dtype),
    )


def flat(
    s: Setting, image: jax.Array | np.ndarray, rngs: jax.Array
) -> jax.Array:
    """Return images as the network sees them, [B, D] in [0, 1]."""
    x = binarize.to_unit_range(derive(rngs, Use.PIXELS), image, s.data)
    return x.reshape(len(x), -1)


def draw_noise(s: Setting, rngs: jax.Array) -> Noise | None:
    """Draw the noise of the layers above the first."""
    if not s.config.hidden_noise:
        return None

    def normal(number: int, size: int) -> jax.Array:
        draw = jax.vmap(lambda rng: jax.random.normal(rng, (size,)))
        return s.config.hidden_noise * draw(fold_in_each(rngs, number))

    return tuple(
        (normal(2 * i, size), normal(2 * i + 1, size))
        for i, size in enumerate(s.config.layers[1:])
    )


def run_chain(
    s: Setting, variables: dict[str, Any], rngs: jax.Array, x: jax.Array, num: int,
    **steps: Any,
) -> jax.Array:
    """Return the logits [num, B, D] of chains from x [B, D]; see `walkback.chain`."""
    def denoise(
        rngs: jax.Array, x: jax.Array, hidden: Hidden
    ) -> tuple[jax.Array, Hidden]:
        return s.model.apply(variables, x, hidden, draw_noise(s, rngs))

    start = walkback.State(x, s.model.start(len(x)))
    rate = s.config.input_noise
    return walkback.chain(rngs, denoise, start, num, rate=rate, **steps)[1]


def first_images(
    s: Setting, variables: dict[str, Any], rngs: jax.Array
) -> jax.Array:
    """Draw where chains start: images [B, D] of bits from P(x|h) with h = 0.

    But for its biases a network of tanh is odd, and gives the negative of an image for
    -h. Chains from coin flips may stay among the negatives (on MNIST all of them do),
    which training from images never visits. The biases have learned the background.
    """
    h = s.model.start(len(rngs))[0]
    logits = s.model.apply(variables, h, method=GSN.decode)
    u = uniforms(derive(rngs, Use.CORRUPTION), s.model.num_dims)
    return (u < jax.nn.sigmoid(logits)).astype(jnp.float32)


def from_start(
    s: Setting, variables: dict[str, Any], rngs: jax.Array, num: int
) -> jax.Array:
    """Return the logits [num, B, D] of B chains after --chain_steps, --thin apart."""
    rngs = derive(rngs, Use.CHAIN)
    x = first_images(s, variables, rngs)
    return run_chain(
        s, variables, rngs, x, num, every=s.config.thin,
        burn_in=max(s.config.chain_steps - s.config.thin, 0),
    )


def reconstruct(
    s: Setting, variables: dict[str, Any], x: jax.Array, rngs: jax.Array
) -> jax.Array:
    """Return the cross-entropy of every reconstruction with x [B, D], [B, N] nats."""
    chain_rngs = derive(rngs, Use.CHAIN)
    logits = run_chain(s, variables, chain_rngs, x, s.config.walkbacks)
    return -jax.vmap(likelihoods.bernoulli_log_prob, (0, None), 1)(logits, x)
