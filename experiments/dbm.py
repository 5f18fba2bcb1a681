r"""Deep Boltzmann machine of two hidden layers.

Salakhutdinov and Hinton 2009, Deep Boltzmann Machines. Both layers are trained at once.
The centered parametrisation allows that without pretraining: Montavon and Mueller 2012,
Deep Boltzmann Machines and the Centering Trick. With --first_layer, training begins
with the averaged weights of an RBM, as Salakhutdinov and Hinton begin with those of
RBMs. The weights of the second layer are nearly 0 at that time, so that the bound is
the likelihood of the RBM; in our runs they hardly grow from there.

    python -m experiments.dbm --workdir=/tmp/dbm
    python -m experiments.dbm --workdir=/tmp/dbm500 --preset=paper --data_dir=DIR
    python -m experiments.dbm --workdir=/tmp/dbm_of_an_rbm --preset=paper \
        --first_layer=results/models/rbm_binarized_mnist --data_dir=DIR

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
import os
import sys

import jax

import gm_jax
from gm_jax.data import image_set
from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.families import boltzmann
from gm_jax.families.boltzmann import Machine
from gm_jax.losses.energy import RBM
from gm_jax.models import dbm
from gm_jax.models.dbm import DBM
from gm_jax.training import command, settings, workdir
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
    first_layer: str = field(
        '', 'work directory of the experiment `rbm` on the same set, or its exported '
        'model, whose weights and biases the first layer begins with'
    )

    def __post_init__(self) -> None:
        """Raise UserError unless there are two layers, which begin in one way."""
        super().__post_init__()
        if self.first_layer and self.begin_with:
            raise UserError(
                f'--first_layer={self.first_layer} and --begin_with={self.begin_with}: '
                f'training begins with one of them.'
            )
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
        pretrained=functools.partial(_first_layer, config, data)
        if config.first_layer else None,
    ))


def init(hidden: Sizes, rng: jax.Array, visible_bias: jax.Array) -> Params:
    """Make the parameters."""
    return dbm.init(rng, visible_bias, *hidden)._asdict()


def _first_layer(config: Config, data: ImageSet) -> dict[str, Params]:
    """Read the parameters of the first layer from a trained RBM."""
    try:
        run = gm_jax.load(config.first_layer)
    except UserError as error:
        raise UserError(f'--first_layer={config.first_layer}: {error}') from error
    if run.command.name != 'rbm':
        raise UserError(
            f'--first_layer={config.first_layer} is a run of {run.command.name}, not '
            f'of rbm.'
        )
    image_set.check_same_images(
        workdir.facts_path(os.path.expanduser(config.first_layer)), data,
        f'--first_layer={config.first_layer} is an RBM',
    )
    rbm = RBM(**run.variables['params'])
    if rbm.weights.shape[1] != config.hidden[0]:
        raise UserError(
            f'--first_layer={config.first_layer} has {rbm.weights.shape[1]} hidden '
            f'units, and --hidden={settings.text(config.hidden)} asks for '
            f'{config.hidden[0]} in the first layer.'
        )
    return {'params': {
        'weights1': rbm.weights, 'visible_bias': rbm.visible_bias,
        'hidden1_bias': rbm.hidden_bias,
    }}


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
