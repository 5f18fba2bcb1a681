"""DCGAN: a GAN of strided and fractionally-strided convolutions with BatchNorm.

Radford, Metz and Chintala 2016, Unsupervised Representation Learning with Deep
Convolutional GANs.

    python -m experiments.dcgan --workdir=/tmp/dcgan
    python -m experiments.dcgan --workdir=/tmp/dcgan --mode=sample
    python -m experiments.dcgan --workdir=/tmp/dcgan_classes --class_conditional
"""

if __name__ == '__main__':
    from gm_jax import entry

    entry.begin()  # before JAX is imported

import dataclasses
import functools
import math
import sys
from collections.abc import Callable

import jax

from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.families import adversarial
from gm_jax.families.adversarial import Losses, Networks
from gm_jax.losses.adversarial import (
    critic_generator_loss,
    discriminator_loss,
    generator_loss_minimax,
    generator_loss_non_saturating,
    hinge_loss,
)
from gm_jax.training import command
from gm_jax.training.settings import MOST_SIDE, Sizes, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(adversarial.Config):
    """Settings of the DCGAN."""

    num_steps: int = field(1500, 'training steps', low=1)
    features: Sizes = field(
        (32, 64), 'feature maps of each strided convolution; the generator mirrors them'
    )
    kernel_size: int = field(4, 'side of every kernel', low=2, high=MOST_SIDE)
    loss: str = field(
        'non_saturating', 'losses: cross-entropy, with -log D(G(z)) or '
        'log(1 - D(G(z))) for the generator, or the hinge loss',
        choices=('non_saturating', 'minimax', 'hinge'),
    )
    norm: str = field(
        'batch', 'normalisation of the discriminator',
        choices=('batch', 'none', 'spectral'),
    )

    label_smoothing: float = field(
        0.0, 'the target of data is 1 minus this, in the cross-entropy of the '
        'discriminator', low=0.0, high=0.5,
    )
    r1: float = field(
        0.0, 'weight of the squared gradient of the discriminator at data, gamma / 2 '
        'of Mescheder et al. 2018; 0: none', low=0.0,
    )

    def __post_init__(self) -> None:
        """Raise UserError for settings that contradict each other."""
        super().__post_init__()
        if self.label_smoothing and self.loss == 'hinge':
            raise UserError(
                '--label_smoothing is of the cross-entropy: add --label_smoothing=0, '
                'or leave out --loss=hinge.'
            )
        if self.r1 and self.norm == 'batch':
            raise UserError(
                '--r1: with BatchNorm the score of an image depends on the others, '
                'so that it has no gradient of its own: add --norm=spectral or '
                '--norm=none.'
            )

    @property
    def gains_from_cpu_devices(self) -> bool:
        """Whether a CPU trains the model faster with one virtual device per core."""
        return True


PRESETS = {
    # The settings of the paper, for faces of 64 pixels per side.
    'paper': Config(
        dataset='celeb_a', image_size=64, features=(128, 256, 512, 1024), kernel_size=5,
        latent_dim=100, batch_size=128, num_steps=40_000, eval_every=2_000,
    ),
    # Small enough for a CPU; not a recipe of the paper. With a constant rate, labels of
    # 1 and no average the discriminator saturates after about 10,000 steps.
    'colour': Config(
        dataset='cifar10', features=(32, 64, 128), latent_dim=100, num_steps=15_000,
        eval_every=1_000, checkpoint_every=1_000, schedule='cosine',
        label_smoothing=0.1, ema=0.999,
    ),
}


def make_networks(config: Config, data: ImageSet) -> Networks:
    """Make the networks of both players."""
    return adversarial.dcgan_networks(
        config, data, config.features, kernel_size=config.kernel_size, norm=config.norm
    )


def make_losses(config: Config) -> Losses:
    """Make the losses of both players."""
    s = config.label_smoothing
    # With smoothing s the loss is at least the entropy of a coin of probability s.
    least = -s * math.log(s) - (1 - s) * math.log1p(-s) if s else 0.0
    of_discriminator: Callable[[jax.Array, jax.Array], jax.Array] = hinge_loss
    if config.loss != 'hinge':
        of_discriminator = functools.partial(discriminator_loss, smoothing=s)
    of_generator = {
        'non_saturating': generator_loss_non_saturating,
        'minimax': generator_loss_minimax,
        'hinge': critic_generator_loss,
    }[config.loss]
    return Losses(
        of_discriminator, of_generator, r1=config.r1, saturated_below=least + 0.1
    )


main = command.Command(
    'dcgan', __doc__, Config, PRESETS,
    functools.partial(
        adversarial.build, make_networks=make_networks, make_losses=make_losses
    ),
)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
