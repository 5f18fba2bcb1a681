"""MADE: exact likelihood by a masked autoencoder, over one order or many.

Germain et al. 2015, MADE: Masked Autoencoder for Distribution Estimation.

    python -m experiments.made --workdir=/tmp/made
    python -m experiments.made --workdir=/tmp/made16 --num_masks=16 --order=random

With several masks each step trains on the next one in turn. The final evaluation
averages the probabilities of an image over all of them; images are generated with the
first.

NOTE: the preset paper has the hidden units and the one mask of the paper. Dropout,
Adam, its learning rate and the averaged parameters are ours.
"""

if __name__ == '__main__':
    from gm_jax import entry

    entry.begin()  # before JAX is imported

import dataclasses
import functools
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax import memory
from gm_jax.data import binarize
from gm_jax.data.image_set import ImageSet
from gm_jax.families import autoregressive, setting
from gm_jax.families.setting import Variables
from gm_jax.models.made import MADE, Masks, ascending, draw_masks
from gm_jax.sampling import distributions
from gm_jax.training import command
from gm_jax.training.settings import Sizes, field, text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(setting.Config):
    """Settings of MADE."""

    hidden: Sizes = field(
        (), 'hidden units of each layer, e.g. 500,500; by default one layer of 500, or '
        'of fewer for large images of many levels'
    )
    direct: str = field(
        'auto', 'connections from the values to the logits of those after them; auto: '
        'unless they have more than 20 million weights', choices=('auto', 'yes', 'no'),
    )
    dropout: float = field(
        0.0, 'share of hidden units dropped in every layer, in training', low=0.0,
        high=0.99,
    )
    num_masks: int = field(
        1, 'masks, each with different connections', low=1, high=10_000
    )
    order: str = field(
        'raster', 'order of the values; random ones are drawn from the seed, one per '
        'mask',
        choices=('raster', 'random'),
    )

    @property
    def of_the_network(self) -> tuple[str, ...]:
        """The settings that change the network, but not the sizes of its arrays."""
        return 'order', 'num_masks', 'seed'  # the masks are drawn from the seed

    @property
    def gains_from_cpu_devices(self) -> bool:
        """Whether a CPU trains the model faster with one virtual device per core."""
        return False


PRESETS = {
    # One hidden layer and one mask; the best of the paper is
    # --hidden=8000,8000 --num_masks=32. With --dropout=0 it overfits after 3,500 steps:
    # --checkpoint=best evaluates the step that did best on the validation split.
    'paper': Config(
        dataset='binarized_mnist', hidden=(8000,), dropout=0.5, batch_size=100,
        learning_rate=3e-3, weight_decay=0.1, ema=0.999, num_steps=10_000,
        log_every=100, eval_every=500, checkpoint_every=1_000,
    ),
}

# More weights of direct connections than these are not made by default.
_MOST_DIRECT = 20_000_000


def make_model(config: Config, data: ImageSet) -> setting.Model:
    """Make the functions of the network."""
    num_values, num_dims = binarize.num_values(data), math.prod(data.image_shape)
    rng, shuffle = np.random.default_rng(config.seed), config.order == 'random'
    hidden = config.hidden or (setting.hidden_units(500, data),)
    direct = config.direct == 'yes' or config.direct == 'auto' and (
        num_dims * setting.num_logits(data) <= _MOST_DIRECT
    )
    memory.check(
        f'--num_masks={config.num_masks} with --hidden={text(hidden)}',
        8 * config.num_masks * (num_dims + sum(hidden)),
    )
    masks = [
        draw_masks(rng, num_dims, hidden, shuffle=shuffle)
        for _ in range(config.num_masks)
    ]
    masks[0] = ascending(masks[0])
    module = MADE(
        image_shape=data.image_shape,
        num_values=num_values,
        hidden=hidden,
        direct=direct,
        dropout=config.dropout,
        dtype=jnp.dtype(config.dtype),
    )

    def init(rng: jax.Array, x: jax.Array, h: jax.Array | None) -> Variables:
        return module.init(rng, x, masks[0], h)

    def apply(
        variables: Variables, x: jax.Array, h: jax.Array | None, *,
        rngs: jax.Array | None, step: Any, chunk: Any,
    ) -> jax.Array:
        which = chunk if rngs is None else step % config.num_masks
        mask: Masks = jax.tree.map(lambda *a: jnp.stack(a)[which], *masks)
        return module.apply(variables, x, mask, h, rngs)

    network = functools.partial(
        setting.linen_network, module, conditioned='pixel', more=(masks[0],)
    )
    return setting.Model(
        init=init,
        apply=apply,
        incremental=setting.by_rows(network, masks[0].order),
        distribution=distributions.discrete(num_values, data.image_shape[2]),
        test_chunks=config.num_masks,
        order=masks[0].order,
        heavy=False,
    )


main = command.Command(
    'made', __doc__, Config, PRESETS,
    functools.partial(autoregressive.build, make_model=make_model),
)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
