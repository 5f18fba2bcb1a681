"""Generative adversarial networks, by the algorithm of the paper.

Goodfellow et al. 2014, Generative Adversarial Networks: k steps of the discriminator,
each on a fresh minibatch and fresh noise, then one step of the generator. The generator
minimises -log D(G(z)), as the paper does in practice, or with --generator_loss=minimax
log(1 - D(G(z))), as in its algorithm 1.

    python -m experiments.gan --workdir=/tmp/gan
    python -m experiments.gan --workdir=/tmp/gan --mode=sample
    python -m experiments.gan --workdir=/tmp/minimax --generator_loss=minimax --k=2
"""

if __name__ == '__main__':
    from gm_jax import entry

    entry.begin()  # before JAX is imported

import dataclasses
import functools
import sys

import jax.numpy as jnp

from gm_jax.data.image_set import ImageSet
from gm_jax.families import adversarial
from gm_jax.families.adversarial import Losses, Networks
from gm_jax.losses.adversarial import (
    discriminator_loss,
    generator_loss_minimax,
    generator_loss_non_saturating,
)
from gm_jax.models import gan
from gm_jax.training import command
from gm_jax.training.settings import Sizes, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(adversarial.Config):
    """Settings of the GAN."""

    num_steps: int = field(6000, 'training steps', low=1)
    eval_every: int = field(2000, 'steps between evaluations', low=1, free=True)
    network: str = field(
        'dense', 'dense and maxout layers, as in the paper, or the small convolutional '
        'network of Lucic et al. 2018', choices=('dense', 'small'),
    )
    generator_loss: str = field(
        'non_saturating', 'what the generator minimises: -log D(G(z)), or '
        'log(1 - D(G(z))), its part of the minimax game',
        choices=('non_saturating', 'minimax'),
    )
    hidden: Sizes = field((256, 256), 'widths of the dense generator')
    discriminator_hidden: Sizes = field(
        (128, 128), 'maxout units of the discriminator'
    )
    dropout: float = field(
        0.3, 'share of units dropped in the dense discriminator', low=0.0, high=0.99
    )

    @property
    def without_effect(self) -> dict[str, str]:
        """The settings that change nothing beside the others, and why, by name."""
        found = super().without_effect
        if self.network == 'small':
            for name in ('hidden', 'discriminator_hidden', 'dropout'):
                found[name] = 'needs --network=dense'
        return found

    def __post_init__(self) -> None:
        """Raise UserError for settings that contradict each other."""
        super().__post_init__()
        adversarial.check_unconditional(self)


# Twenty epochs of 60,000 images.
_LUCIC = Config(
    dataset='fashion_mnist', network='small', num_steps=18_750, learning_rate=5e-5,
    adam_b1=0.0, log_every=125, eval_every=1_875, checkpoint_every=625,
)
PRESETS = {
    # The sizes of the paper for MNIST. The paper itself has gradient descent with
    # momentum and a decaying rate, uniform initial weights and a sigmoid output.
    'paper': Config(
        dataset='mnist', hidden=(1200, 1200), discriminator_hidden=(240, 240),
        latent_dim=100, batch_size=100, dropout=0.5, num_steps=30_000,
        eval_every=3_000,
    ),
    'lucic': _LUCIC,
    'lucic_minimax': dataclasses.replace(_LUCIC, generator_loss='minimax'),
}


def make_networks(config: Config, data: ImageSet) -> Networks:
    """Make the networks of both players."""
    if config.network == 'small':
        return adversarial.small_networks(config, data, norm='batch')
    dtype = jnp.dtype(config.dtype)
    return Networks(
        gan.Generator(data.image_shape, config.hidden, dtype=dtype),
        gan.Discriminator(
            config.discriminator_hidden, dropout=config.dropout, dtype=dtype
        ),
        convolutional=False,
    )


def make_losses(config: Config) -> Losses:
    """Make the losses of both players."""
    generator_loss = {
        'minimax': generator_loss_minimax,
        'non_saturating': generator_loss_non_saturating,
    }[config.generator_loss]
    return Losses(discriminator_loss, generator_loss, saturated_below=0.1)


main = command.Command(
    'gan', __doc__, Config, PRESETS,
    functools.partial(
        adversarial.build, make_networks=make_networks, make_losses=make_losses
    ),
)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
