r"""Restricted Boltzmann machine, trained by (persistent) contrastive divergence.

Hinton 2002, Training Products of Experts by Minimizing Contrastive Divergence; Tieleman
2008, Training Restricted Boltzmann Machines using Approximations to the Likelihood
Gradient. Centered as in Melchior et al. 2016, evaluated by annealed importance sampling
as in Salakhutdinov and Murray 2008, On the Quantitative Analysis of Deep Belief
Networks.

    python -m experiments.rbm --workdir=/tmp/rbm
    python -m experiments.rbm --workdir=/tmp/rbm500 --preset=paper --data_dir=DIR

The preset paper has the 500 hidden units and the 25 Gibbs steps of Salakhutdinov and
Murray on statically binarized MNIST, where their machine has 86.34 nats on the test
set. The preset cpu takes 5 Gibbs steps: about 80 minutes of one core, not 5 hours.
"""

if __name__ == '__main__':
    from gm_jax import entry

    entry.begin()  # before JAX is imported

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp

from gm_jax.data.image_set import ImageSet
from gm_jax.families import boltzmann
from gm_jax.families.boltzmann import Machine
from gm_jax.losses.energy import RBM
from gm_jax.models import rbm
from gm_jax.training import command
from gm_jax.training.contracts import Experiment
from gm_jax.training.settings import MOST_UNITS, field
from gm_jax.training.train_state import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(boltzmann.Config):
    """Settings of the RBM."""

    hidden: int = field(128, 'hidden units', low=1, high=MOST_UNITS)
    persistent: bool = field(
        True, 'each chain goes on where it ended, PCD-k; otherwise it starts from an '
        'example at each step, CD-k'
    )


_PAPER = Config(
    dataset='binarized_mnist', binarize='none', hidden=500, k=25, num_steps=300_000,
    ema=0.9995, eval_every=10_000, checkpoint_every=10_000, log_every=1000,
    eval_batch_size=1000,
)
PRESETS = {'paper': _PAPER, 'cpu': dataclasses.replace(_PAPER, k=5)}


def build(config: Config, data: ImageSet) -> Experiment:
    """Make the experiment."""
    return boltzmann.build(config, data, Machine(
        init=functools.partial(init, config.hidden), rbm=lambda params: RBM(**params),
        infer=infer, num_hidden=config.hidden, persistent=config.persistent,
        bound=False,
    ))


def init(num_hidden: int, rng: jax.Array, visible_bias: jax.Array) -> Params:
    """Make the parameters."""
    return rbm.init(rng, visible_bias, num_hidden)._asdict()


def infer(params: Params, v: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
    """Return v itself: an RBM has no other units in u."""
    del params, train
    return v, jnp.zeros(len(v))


main = command.Command('rbm', __doc__, Config, PRESETS, build)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
