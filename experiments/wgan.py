"""Wasserstein GAN: a critic with a bounded gradient in place of a discriminator.

The gradient is bounded by clipping the weights (Arjovsky, Chintala and Bottou 2017,
Wasserstein GAN), by a penalty on the gradient (Gulrajani et al. 2017, Improved Training
of Wasserstein GANs), or by the spectral norms of the kernels (Miyato et al. 2018,
Spectral Normalization for GANs).

    python -m experiments.wgan --workdir=/tmp/wgan
    python -m experiments.wgan --workdir=/tmp/clip --lipschitz=clip
    python -m experiments.wgan --workdir=/tmp/wgan --mode=sample
"""

if __name__ == '__main__':
    from gm_jax import entry

    entry.begin()  # before JAX is imported

import dataclasses
import functools
import sys

import jax.numpy as jnp

from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.families import adversarial
from gm_jax.families.adversarial import Losses, Networks
from gm_jax.losses.adversarial import critic_generator_loss, critic_loss
from gm_jax.models import gan
from gm_jax.training import command
from gm_jax.training.settings import MOST_DECAY, MOST_SIDE, Sizes, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(adversarial.Config):
    """Settings of the Wasserstein GAN."""

    learning_rate: float = field(1e-4, 'peak learning rate', low=0.0)
    adam_b2: float = field(
        0.9, 'decay of the average of squared gradients', low=0.0, high=MOST_DECAY
    )
    k: int = field(
        5, 'critic steps per generator step, each on a minibatch of its own', low=1,
        high=100,
    )
    lipschitz: str = field(
        'gradient_penalty', "what bounds the critic's gradient: clipped weights, a "
        'penalty on the gradient, or the spectral norm of every kernel',
        choices=('clip', 'gradient_penalty', 'spectral'),
    )
    penalty: float = field(10.0, 'weight of the gradient penalty', low=0.0)
    clip: float = field(0.01, 'largest absolute weight with --lipschitz=clip', low=0.0)
    network: str = field(
        'dcgan', 'networks of the experiment dcgan, the small ones of Lucic et al. '
        '2018, or dense layers',
        choices=('dcgan', 'small', 'dense'),
    )
    features: Sizes = field(
        (32, 64), 'feature maps of each strided convolution of --network=dcgan, or '
        'widths of the layers of dense; the generator mirrors them'
    )
    kernel_size: int = field(
        4, 'side of every kernel of --network=dcgan', low=2, high=MOST_SIDE
    )

    @property
    def without_effect(self) -> dict[str, str]:
        """The settings that change nothing beside the others, and why, by name."""
        found = super().without_effect
        if self.network == 'small':
            found['features'] = 'is not used by --network=small'
        if self.network != 'dcgan':
            found['kernel_size'] = 'needs --network=dcgan'
        if self.lipschitz != 'clip':
            found['clip'] = 'needs --lipschitz=clip'
        if self.lipschitz != 'gradient_penalty':
            found['penalty'] = 'needs --lipschitz=gradient_penalty'
        return found

    def __post_init__(self) -> None:
        """Raise UserError where nothing bounds the gradient."""
        super().__post_init__()
        bound = {'clip': self.clip, 'gradient_penalty': self.penalty, 'spectral': 1}
        if not bound[self.lipschitz]:
            raise UserError(
                f'--lipschitz={self.lipschitz} with a bound of 0 bounds nothing.'
            )

    @property
    def gains_from_cpu_devices(self) -> bool:
        """Whether a CPU trains the model faster with one virtual device per core."""
        return self.network != 'dense'


# Twenty epochs of 60,000 images for the critic: generator steps are a fifth of its
# minibatches.
_LUCIC = Config(
    dataset='fashion_mnist', network='small', num_steps=3_750, adam_b2=0.999,
    log_every=25, eval_every=375, checkpoint_every=125,
)
PRESETS = {
    # Adam without momentum in place of RMSProp, the same except for the start of its
    # averages; so too in lucic_clip.
    'clip': Config(
        dataset='cifar10', lipschitz='clip', features=(32, 64, 128), latent_dim=100,
        prior='normal', learning_rate=5e-5, adam_b1=0.0, adam_b2=0.99,
        num_steps=15_000, eval_every=3_000,
    ),
    'gradient_penalty': Config(
        dataset='cifar10', features=(32, 64, 128), latent_dim=128, prior='normal',
        num_steps=15_000, eval_every=3_000,
    ),
    'lucic_clip': dataclasses.replace(
        _LUCIC, lipschitz='clip', learning_rate=5e-5, adam_b1=0.0
    ),
    'lucic_gradient_penalty': _LUCIC,
}


def make_networks(config: Config, data: ImageSet) -> Networks:
    """Make the networks of both players.

    BatchNorm makes a score a function of the whole batch, so that no example has a
    gradient of its own to penalise. Only the clipped critic has BatchNorm, as in the
    paper.
    """
    norms = {'clip': 'batch', 'gradient_penalty': 'none', 'spectral': 'spectral'}
    norm, dtype = norms[config.lipschitz], jnp.dtype(config.dtype)
    features = config.features
    if config.network == 'dcgan':
        return adversarial.dcgan_networks(
            config, data, features, kernel_size=config.kernel_size, norm=norm
        )
    if config.network == 'small':
        return adversarial.small_networks(config, data, norm=norm)
    adversarial.check_unconditional(config)
    return Networks(
        gan.Generator(data.image_shape, features[::-1], dtype=dtype),
        gan.Critic(features, spectral=norm == 'spectral', dtype=dtype),
        convolutional=False,
    )


def make_losses(config: Config) -> Losses:
    """Make the losses of both players."""
    return Losses(
        critic_loss, critic_generator_loss,
        penalty=config.penalty if config.lipschitz == 'gradient_penalty' else 0.0,
        clip=config.clip if config.lipschitz == 'clip' else 0.0,
    )


main = command.Command(
    'wgan', __doc__, Config, PRESETS,
    functools.partial(
        adversarial.build, make_networks=make_networks, make_losses=make_losses
    ),
)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
