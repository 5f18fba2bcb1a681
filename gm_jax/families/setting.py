"""The parts of an autoregressive experiment: settings, a model and maybe a task."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gm_jax.data import binarize, image_set
from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.keys import Use, derive, fold_in_each
from gm_jax.layers.causal import logits_per_value
from gm_jax.sampling import latent
from gm_jax.sampling.autoregressive import Network, incremental, no_context
from gm_jax.sampling.distributions import Distribution, Quantile
from gm_jax.training import settings
from gm_jax.training.settings import field

__all__ = [
    'ApplyModel', 'by_rows', 'check', 'check_colours', 'Config', 'feature_maps',
    'first_batch', 'hidden_units', 'Incremental', 'InitModel', 'label', 'linen_model',
    'linen_network', 'MakeNetwork', 'Model', 'num_logits', 'pick', 'Setting', 'Task',
    'Variables',
]

_ALL = '-1'  # the --label of all classes in turn
_FIRST_BATCH = 64  # images
# Below this only the most likely value is ever drawn, and logits would overflow.
_MIN_TEMPERATURE = 1e-3
_FEATURES = 16  # feature maps, by default, for grey images
_MOST_WEIGHTS = 44_000_000

# Parameters and other collections, as flax.linen.Module.apply takes them.
Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(settings.Config):
    """Settings of every autoregressive model."""

    num_steps: int = field(600, 'training steps', low=1)
    batch_size: int = field(
        32, 'examples per step, over all devices of all processes', low=1
    )
    learning_rate: float = field(4e-3, 'peak learning rate', low=0.0)
    ema: float = field(
        0.99, 'decay of the parameter average that evaluation uses; 0: none',
        low=0.0, high=1.0,
    )
    class_conditional: bool = field(False, 'condition on the labels of the images')
    micro_batch: int = field(
        0, 'examples per gradient computation; 0: chosen by model and backend', low=0
    )
    sampler: str = field(
        'incremental', 'sampling method; all give the same images, see '
        'gm_jax.sampling.autoregressive',
        choices=('incremental', 'fixed_point', 'ancestral'), free=True,
    )
    temperature: float = field(
        1.0, 'sampling temperature; below 1 likely values become likelier', free=True
    )
    label: str = field(
        _ALL, 'class to generate, by its number or name; -1: all in turn', free=True
    )
    given: str = field(
        '', "npz of partial images to complete: 'images' integers [N, H, W, C], 'mask' "
        '[H, W] or of the shape of images, true where a pixel is given; or a PNG whose '
        'transparent pixels are not given. Each other value is drawn given those '
        'before it in the order of the model, which is all that is given if that '
        'comes first', free=True,
    )

    def __post_init__(self) -> None:
        """Raise UserError for the first setting that is not allowed."""
        if type(self.label) is int:  # as older versions wrote it
            object.__setattr__(self, 'label', str(self.label))
        super().__post_init__()
        if self.temperature < _MIN_TEMPERATURE:
            raise UserError(
                f'--temperature must be {_MIN_TEMPERATURE} or more, got '
                f'{self.temperature}: this already draws only the most likely value.'
            )

    @property
    def gains_from_cpu_devices(self) -> bool:
        """Whether a CPU trains the model faster with one virtual device per core."""
        return True

    @property
    def smallest_share(self) -> int:
        """The number of examples of a batch that must stay together on a device."""
        return self.micro_batch or 1


class InitModel(Protocol):
    """A function that makes the variables of a model."""

    def __call__(self, rng: jax.Array, x: jax.Array, h: jax.Array | None, /) -> Any:
        """Return the variables, from a first batch x [B, H, W, C] and its h."""


class ApplyModel(Protocol):
    """The network, for all pixels at once."""

    def __call__(
        self, variables: Variables, x: jax.Array, h: jax.Array | None, /, *,
        rngs: jax.Array | None, step: Any, chunk: Any,
    ) -> Any:
        """Compute the parameters of the distribution of every pixel.

        Args:
            variables: parameters and other collections.
            x: [B, H, W, C] integers in [0, V).
            h: what the images are conditioned on.
            rngs: [B] keys, in training; None in evaluation.
            step: [] the training step.
            chunk: [] the index of the density to evaluate, from 0 to test_chunks - 1.
        """


class Incremental(Protocol):
    """The fast sampler of a model, which computes for each pixel only what is new."""

    def __call__(
        self, variables: Variables, h: jax.Array | None, quantile: Quantile,
        uniform: jax.Array, x: jax.Array, known: jax.Array, /,
    ) -> jax.Array:
        """Generate images [B, H, W, C]; see `sampling.autoregressive.incremental`."""


# (variables, h) -> the network by rows and pixels
MakeNetwork = Callable[[Variables, jax.Array | None], Network]


class Model(NamedTuple):
    """Functions of an autoregressive network.

    h is what the images are conditioned on: [B, E], such as one-hot labels or a latent
    z, or with a task a map [B, H, W, E]; None without any.

    Attributes:
        init: makes the variables.
        apply: the network, for all pixels at once.
        incremental: the fast sampler; see `by_rows`.
        distribution: the distribution of a pixel.
        test_chunks: the number of densities that the evaluation averages.
        order: [D] the flat positions of the values in the order of the model; None:
            raster order.
        rank: [D] for each flat position a number that rises in this order; values of
            one rank do not depend on each other. None: every value has its own.
        heavy: whether a step takes so long that on a CPU each step is dispatched alone
            and its gradient is computed for few images at a time.
        micro_batch: the number of images at a time for such gradients.
    """

    init: InitModel
    apply: ApplyModel
    incremental: Incremental
    distribution: Distribution
    test_chunks: int = 1
    order: np.ndarray | None = None
    rank: np.ndarray | None = None
    heavy: bool = True
    micro_batch: int = 2


class Task(NamedTuple):
    """A task: part of an image is given to the network, which generates the rest.

    Attributes:
        name: the value of --task.
        given: x [B, H, W, C] -> what is given of it, a map [B, H, W, E].
        shown: x -> integers [B, H, W, C], a picture of what is given.
        missing: [H, W] bool, true for the pixels that are not given themselves.
    """

    name: str
    given: Callable[[jax.Array], jax.Array]
    shown: Callable[[jax.Array], np.ndarray]
    missing: np.ndarray


class Setting(NamedTuple):
    """What the functions of one experiment have in common.

    Attributes:
        config: the settings.
        data: the image set.
        model: the functions of the network.
        task: what is given of an image; None: nothing.
        num_values: V, the number of values of a pixel that the model sees.
        num_dims: the number of values whose log-probabilities are computed.
        generate: (variables, x, known, uniform, h) -> the images by `incremental`.
        sweep: (variables, x, uniform, h) -> for each value what its noise draws given
            x, by one evaluation of the network.
        num_latents: Z, if h is a z with the prior N(0, I); else 0.
    """

    config: Config
    data: ImageSet
    model: Model
    task: Task | None
    num_values: int
    num_dims: int
    generate: Callable[..., jax.Array]
    sweep: Callable[..., jax.Array]
    num_latents: int = 0

    def condition_of_samples(
        self, rngs: jax.Array, x: jax.Array, labels: jax.Array
    ) -> jax.Array | None:
        """Return h of images to generate, which have keys [B]."""
        if self.num_latents:
            return latent.prior_sample(derive(rngs, Use.LATENT), self.num_latents)
        return self.condition(x, labels)

    def condition(self, x: jax.Array, labels: jax.Array) -> jax.Array | None:
        """Return h, what the images are conditioned on."""
        if self.task is not None:
            return self.task.given(x)
        if not self.config.class_conditional:
            return None
        return jax.nn.one_hot(labels, self.data.num_classes)

    def log_prob(self, params: Any, x: jax.Array) -> jax.Array:
        """Return log-probabilities [B]; with a task, those of the missing pixels."""
        log_prob, task = self.model.distribution.log_prob, self.task
        if task is None or task.missing.all():
            return log_prob(params, x)
        return log_prob(*pick((params, x), task.missing))


def pick(tree: Any, where: np.ndarray) -> Any:
    """Select pixels of leaves [B, H, W, ...] by a mask [H, W]: [B, N, 1, ...]."""
    rows, columns = np.nonzero(where)
    return jax.tree.map(lambda a: a[:, rows, columns][:, :, None], tree)


def check(config: Config, data: ImageSet) -> None:
    """Raise UserError for settings that do not fit the images."""
    if config.class_conditional and not data.num_classes:
        raise UserError(f'--class_conditional needs labels; {data.name} has none.')
    if config.label != _ALL and not config.class_conditional:
        raise UserError('--label needs a model trained with --class_conditional.')
    label(config, data)


def label(config: Config, data: ImageSet) -> int | None:
    """Return the number of the class to generate; None for all in turn."""
    return None if config.label == _ALL else image_set.class_number(data, config.label)


def feature_maps(channels: int) -> int:
    """Return the feature maps of a small model, a multiple of the colours."""
    return -(-_FEATURES // channels) * channels


def num_logits(data: ImageSet) -> int:
    """Return the number of logits that an image has: one for each bit, or V."""
    num_dims, num_values = math.prod(data.image_shape), binarize.num_values(data)
    return num_dims * logits_per_value(num_values)


def hidden_units(most: int, data: ImageSet) -> int:
    """Return how many hidden units a dense model has by default, at most `most`.

    It is fewer if the layer from them to all logits would have more than 44 million
    weights, so that no model has more than 50 million parameters by default.

    Args:
        most: the number of units for images that are small, or of few levels.
        data: the image set.
    """
    return max(1, min(most, _MOST_WEIGHTS // num_logits(data)))


def check_colours(features: int, channels: int) -> None:
    """Raise UserError unless the feature maps divide evenly among the colours."""
    if features % channels:
        raise UserError(
            f'--features={features} must be a multiple of {channels}: every colour has '
            f'its own feature maps.'
        )


def first_batch(data: ImageSet, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return images and labels from all over the training set, for initialisation.

    If there are no images, since a checkpoint is about to be read, return one of zeros.
    """
    if 'train' not in data.splits:
        return jnp.zeros((1, *data.image_shape), jnp.int32), jnp.zeros(1, jnp.int32)
    train = data.splits['train']
    num = min(_FIRST_BATCH, len(train))
    batch = train.fetch(np.arange(num) * len(train) // num)
    rngs = derive(fold_in_each(rng, np.arange(num)), Use.PIXELS)
    x = binarize.integers(rngs, batch['image'], data)
    return x, jnp.asarray(batch['label'])


def by_rows(network: MakeNetwork, order: np.ndarray | None = None) -> Incremental:
    """Return the fast sampler of a network that runs by rows and pixels.

    Args:
        network: makes the network from the variables and h.
        order: [D] as in `Model`.
    """

    def generate(
        variables: Variables, h: jax.Array | None, quantile: Quantile,
        uniform: jax.Array, x: jax.Array, known: jax.Array,
    ) -> jax.Array:
        return incremental(
            network(variables, h), quantile, uniform, x, known, order=order
        )

    return generate


def linen_model(
    module: nn.Module, distribution: Distribution, *, conditioned: str = 'row',
    order: np.ndarray | None = None,
) -> Model:
    """Make the functions of a module with `__call__`, `start`, `pixel` and maybe `row`.

    Args:
        module: the network; see `linen_network`.
        distribution: the distribution of a pixel.
        conditioned: the method among `start`, `row` and `pixel` that takes h too.
        order: [D] as in `Model`.
    """

    def init(rng: jax.Array, x: jax.Array, h: jax.Array | None) -> Any:
        return module.init(rng, x[:1], None if h is None else h[:1])

    def apply(
        variables: Variables, x: jax.Array, h: jax.Array | None, *,
        rngs: jax.Array | None, **mode: Any,
    ) -> Any:
        del mode
        dropout = (rngs,) if getattr(module, 'dropout', 0.0) else ()
        return module.apply(variables, x, h, *dropout)

    network = functools.partial(linen_network, module, conditioned=conditioned)
    return Model(init, apply, by_rows(network, order), distribution, order=order)


def linen_network(
    module: nn.Module, variables: Variables, h: jax.Array | None, *,
    conditioned: str = 'row', by_colour: bool = True, more: tuple[Any, ...] = (),
) -> Network:
    """Return a module that has `start` and `pixel`, and its variables, as a network.

    Args:
        module: the network; without a method `row`, its pixels get no context.
        variables: its parameters.
        h: what the images are conditioned on.
        conditioned: the method that takes h after its other arguments.
        by_colour: as in `Network`.
        more: arguments that the `conditioned` method takes before h.
    """
    def method(name: str) -> Callable[..., Any]:
        given = (*more, h) if name == conditioned else ()
        return lambda *args: module.apply(variables, *args, *given, method=name)

    row = method('row') if hasattr(module, 'row') else no_context
    return Network(method('start'), method('pixel'), row, by_colour)
