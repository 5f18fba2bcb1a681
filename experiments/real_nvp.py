r"""RealNVP: a flow of affine couplings at several resolutions.

Dinh et al. 2017, Density estimation using Real NVP.

    python -m experiments.real_nvp --workdir=/tmp/real_nvp
    python -m experiments.real_nvp --workdir=/tmp/real_nvp --mode=sample
    python -m experiments.real_nvp --workdir=/tmp/nvp_noise --dequantization=variational

    python -m experiments.real_nvp --workdir=/tmp/nvp_mnist --preset=mnist \
        --data_dir=DIR

Published: 3.49 bits/dim on CIFAR-10; by Chen et al. 2019, Residual Flows, 1.06 on MNIST
for this model; by Nalisnick et al. 2019, 2.96 on Fashion-MNIST for Glow.
"""

if __name__ == '__main__':
    from gm_jax import entry

    entry.begin()  # before JAX is imported

import dataclasses
import sys

import jax.numpy as jnp

from gm_jax.data.image_set import ImageSet
from gm_jax.families import flow, sides
from gm_jax.models.real_nvp import RealNVP
from gm_jax.training import command, settings
from gm_jax.training.contracts import Experiment
from gm_jax.training.settings import MOST_LAYERS, MOST_UNITS, Sizes, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(flow.Config):
    """Settings of RealNVP."""

    num_steps: int = field(600, 'training steps', low=1)
    batch_size: int = field(
        64, 'examples per step, over all devices of all processes', low=1
    )
    learning_rate: float = field(2e-3, 'peak learning rate', low=0.0)
    warmup_steps: int = field(50, 'steps of linear learning-rate warm-up', low=0)
    grad_clip: float = field(100.0, 'largest gradient norm; 0: no limit', low=0.0)
    checkerboard: int = field(
        0, 'couplings with a checkerboard mask in each scale, before its squeeze',
        low=0, high=MOST_LAYERS,
    )
    channelwise: Sizes = field(
        (4, 4), 'couplings with a mask of channels after the squeeze of each scale; '
        'each scale halves the sides', high=MOST_LAYERS,
    )
    last: int = field(
        2, 'couplings with a checkerboard mask in the last scale', low=0,
        high=MOST_LAYERS,
    )
    whole_scales: int = field(
        1, 'first scales that factor nothing out; the others pass half of the values '
        'to the next', low=0, high=MOST_LAYERS,
    )
    features: int = field(
        20, 'feature maps of the networks of the couplings', low=1, high=MOST_UNITS
    )
    num_blocks: int = field(
        1, 'residual blocks of each network', low=0, high=MOST_LAYERS
    )
    alpha: float = field(
        1e-5, 'a in the logit of a + (1 - 2 a) y, y in [0, 1]', low=1e-6, high=0.49
    )

    @property
    def without_effect(self) -> dict[str, str]:
        """The settings that change nothing beside the others, and why, by name."""
        found = super().without_effect
        if self.whole_scales > len(self.channelwise):
            found['whole_scales'] = (
                f'is above the number of scales of --channelwise, '
                f'{len(self.channelwise)}'
            )
        return found

    @property
    def of_the_network(self) -> tuple[str, ...]:
        """The settings that change the network, but not the sizes of its arrays."""
        return ('alpha',)

    @property
    def gains_from_cpu_devices(self) -> bool:
        """Whether a CPU trains the model faster with one virtual device per core."""
        return True


# Most couplings at a quarter of the resolution, where convolutions cost least.
_SMALL = Config(
    dataset='mnist', dequantization='variational', noise_couplings=2,
    channelwise=(4, 8), last=4, whole_scales=1, features=32, num_blocks=1,
    batch_size=64, learning_rate=1e-3, warmup_steps=500, num_steps=40_000,
    log_every=100, eval_every=5_000,
    checkpoint_every=500, eval_batch_size=100,
)
PRESETS = {
    # Scales and networks as in the paper, but for their normalisation.
    'paper': Config(
        dataset='cifar10', checkerboard=3, channelwise=(3,), last=4, whole_scales=0,
        features=64, num_blocks=8, alpha=0.05, batch_size=64, learning_rate=1e-3,
        num_steps=500_000, eval_every=10_000, checkpoint_every=2_000,
    ),
    # Small enough for a CPU; not a recipe of the paper.
    'mnist': _SMALL,
    'fashion': dataclasses.replace(_SMALL, dataset='fashion_mnist'),
}


def build(config: Config, data: ImageSet) -> Experiment:
    """Make the experiment."""
    flag = f'--channelwise={settings.text(config.channelwise)}'
    sides.check(data, 2 ** len(config.channelwise), flag)
    module = RealNVP(
        image_shape=data.image_shape, checkerboard=config.checkerboard,
        channelwise=config.channelwise, last=config.last,
        whole_scales=config.whole_scales, features=config.features,
        num_blocks=config.num_blocks, alpha=config.alpha,
        dtype=jnp.dtype(config.dtype),
    )
    return flow.build(config, data, flow.from_normal(module, heavy=True))


main = command.Command('real_nvp', __doc__, Config, PRESETS, build)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
