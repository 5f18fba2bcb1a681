r"""Deep Boltzmann machine of two hidden layers.

Salakhutdinov and Hinton 2009, Deep Boltzmann Machines. Both layers are trained at once,
without pretraining, which the centered parametrisation allows: Montavon and Mueller
2012, Deep Boltzmann Machines and the Centering Trick.

    python -m experiments.dbm --workdir=/tmp/dbm
    python -m experiments.dbm --workdir=/tmp/dbm500 --preset=paper --data_dir=DIR

The likelihood is a bound: that of the mean-field posterior, with log Z by annealed
importance sampling. The preset paper has the 500 and 1000 units of Salakhutdinov and
Hinton on statically binarized MNIST, whose bound is 84.62 nats on the test set: about
three hours of one core. With a learning rate five times as large, the chains no longer
follow the model.
"""

if __name__ == '__main__':
    from gm_jax import entry

    entry.begin()  # before JAX is imported

import dataclasses
import functools
import sys

import jax

from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.families import boltzmann
from gm_jax.families.boltzmann import Machine
from gm_jax.losses.energy import RBM
from gm_jax.models import dbm
from gm_jax.models.dbm import DBM
from gm_jax.training import command, settings
from gm_jax.training.contracts import Experiment
from gm_jax.training.settings import Sizes, field
from gm_jax.training.train_state import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(boltzmann.Config):
    """Settings of the DBM."""

    hidden: Sizes = field((64, 64), 'units of the first and of the second hidden layer')
    mean_field_steps: int = field(
        10, 'updates of both hidden layers given an image, in training', low=1,
        high=10_000,
    )
    test_mean_field_steps: int = field(
        50, 'the same in evaluations', low=1, high=10_000, free=True
    )

    def __post_init__(self) -> None:
        """Raise UserError unless there are two layers."""
        super().__post_init__()
        if len(self.hidden) != 2:
            raise UserError(
                f'--hidden={settings.text(self.hidden)} must be two sizes, such as '
                f'500,1000.'
            )


PRESETS = {
    'paper': Config(
        dataset='binarized_mnist', binarize='none', hidden=(500, 1000), k=5,
        mean_field_steps=5, num_steps=200_000, learning_rate=0.01, ema=0.9995,
        eval_every=10_000, checkpoint_every=10_000, log_every=1000,
        eval_batch_size=1000,
    ),
}


def build(config: Config, data: ImageSet) -> Experiment:
    """Make the experiment."""
    return boltzmann.build(config, data, Machine(
        init=functools.partial(init, config.hidden), rbm=machine,
        infer=functools.partial(infer, config), num_hidden=config.hidden[0],
        persistent=True, bound=True,
    ))


def init(hidden: Sizes, rng: jax.Array, visible_bias: jax.Array) -> Params:
    """Make the parameters."""
    return dbm.init(rng, visible_bias, *hidden)._asdict()


def machine(params: Params) -> RBM:
    """Return the RBM between (v, h2) and h1."""
    return dbm.as_rbm(DBM(**params))


def infer(
    config: Config, params: Params, v: jax.Array, train: bool
) -> tuple[jax.Array, jax.Array]:
    """Return (v, q), q the mean-field probabilities of h2, and their entropy."""
    steps = config.mean_field_steps if train else config.test_mean_field_steps
    return dbm.infer(DBM(**params), v, steps)


main = command.Command('dbm', __doc__, Config, PRESETS, build)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
