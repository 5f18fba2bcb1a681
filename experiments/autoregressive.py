"""What the experiments of autoregressive models share; not an experiment itself.

A model brings functions (`Model`); here they become a loss, an exact evaluation, three
samplers, completion of given images, and pictures.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import generation
from gm_jax.data import binarize, sources
from gm_jax.errors import UserError
from gm_jax.evaluation import likelihood
from gm_jax.losses import likelihoods
from gm_jax.sampling import autoregressive
from gm_jax.training import config as config_lib
from gm_jax.training import loop, optimizer
from gm_jax.training import state as state_lib
from gm_jax.training.config import field

_FIRST_BATCH = 64  # images
# Below, likely values are all that is drawn, and logits would overflow.
_MIN_TEMPERATURE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config_lib.Config):
    """Settings of every autoregressive model."""

    num_steps: int = field(600, 'training steps', low=1)
    batch_size: int = field(
        32, 'examples a step, over all devices of all processes', low=1
    )
    learning_rate: float = field(4e-3, 'peak learning rate', low=0.0)
    ema: float = field(
        0.99, 'decay of the parameter average that evaluation uses; 0: none',
        low=0.0, high=1.0,
    )
    class_conditional: bool = field(False, 'condition on the labels of the images')
    micro_batch: int = field(
        0, 'examples whose gradient is taken together; 0: by model and backend', low=0
    )
    sampler: str = field(
        'incremental', 'how to generate; all give the same images, see '
        'gm_jax.sampling.autoregressive',
        choices=('incremental', 'fixed_point', 'ancestral'), free=True,
    )
    temperature: float = field(
        1.0, 'below 1 likely values become likelier', free=True
    )
    label: int = field(-1, 'class to generate; -1: all in turn', low=-1, free=True)
    given: str = field(
        '', "npz of partial images to complete: 'images' integers [N, H, W, C], 'mask' "
        '[H, W] or of the shape of images, true where a pixel is given', free=True,
    )

    def __post_init__(self) -> None:
        """Raises UserError for the first setting that is not allowed."""
        super().__post_init__()
        if self.temperature < _MIN_TEMPERATURE:
            raise UserError(
                f'--temperature must be {_MIN_TEMPERATURE} or more, got '
                f'{self.temperature}: there the likeliest value is taken already.'
            )


class Distribution(NamedTuple):
    """The conditional distribution of a pixel's values."""

    log_prob: Callable  # (params, x [B, H, W, C]) -> [B]
    quantile: autoregressive.Quantile
    temper: Callable  # (params, temperature) -> params
    num_noise: int  # uniform numbers a pixel


def discrete(num_values: int, channels: int) -> Distribution:
    """Returns a Bernoulli (V = 2) or a categorical distribution of every value."""
    binary = num_values == 2
    log_prob, quantile = (
        (likelihoods.bernoulli_log_prob, likelihoods.bernoulli_quantile) if binary else
        (likelihoods.categorical_log_prob, likelihoods.categorical_quantile)
    )
    return Distribution(
        log_prob=log_prob,
        quantile=lambda logits, x, u: quantile(logits, u),
        temper=lambda logits, temperature: logits / temperature,
        num_noise=channels,
    )


def logistic_mixture(num_values: int, channels: int) -> Distribution:
    """Returns mixtures of discretized logistics, of all colours of a pixel together."""
    values = dict(num_values=num_values)
    return Distribution(
        log_prob=functools.partial(likelihoods.logistic_mixture_log_prob, **values),
        quantile=functools.partial(likelihoods.logistic_mixture_quantile, **values),
        temper=likelihoods.logistic_mixture_temper,
        num_noise=1 + channels,
    )


class Model(NamedTuple):
    """Functions of an autoregressive network.

    h is what it is conditioned on: [B, E], or a map [B, H, W, E] with a task.
    """

    init: Callable  # (rng, x, h) of a first batch -> variables
    # (variables, x, h, *, rngs [B] or None, step, chunk) -> params; rngs are given in
    # training, with the step; chunk, from 0 to test_chunks - 1, in the evaluation
    apply: Callable
    network: Callable | None  # (variables, h) -> autoregressive.Network
    distribution: Distribution
    test_chunks: int = 1  # densities over which the evaluation averages
    order: np.ndarray | None = None  # of the values; None: raster
    # whether a step takes so long that each is dispatched alone on a CPU, and its
    # gradient is taken for few images at a time: this many
    heavy: bool = True
    micro_batch: int = 2
    # in place of `network`: (variables, h, quantile, uniform, x, known) -> images
    incremental: Callable | None = None


class Task(NamedTuple):
    """Part of an image is given to the network, which generates the rest."""

    name: str
    given: Callable  # x [B, H, W, C] -> what h is of it, a map [B, H, W, E]
    shown: Callable  # x -> integers [B, H, W, C]: a picture of what is given
    missing: np.ndarray  # [H, W] bool: the pixels that are not themselves given


def linen_model(
    module: Any, distribution: Distribution, *, conditioned: str = 'row'
) -> Model:
    """Makes the functions of a module with `__call__`, `start`, `row` and `pixel`.

    `conditioned` is the one of the last three that h is given to.
    """

    def network(variables: Any, h: jax.Array | None) -> autoregressive.Network:
        def method(name: str) -> Callable:
            more = (h,) if name == conditioned else ()
            return lambda *args: module.apply(variables, *args, *more, method=name)

        return autoregressive.Network(method('start'), method('row'), method('pixel'))

    return Model(
        init=lambda rng, x, h: module.init(rng, x[:1], None if h is None else h[:1]),
        apply=lambda variables, x, h, **mode: module.apply(variables, x, h),
        network=network,
        distribution=distribution,
    )


def num_values(config: Config, data: sources.ImageSet) -> int:
    """Returns V; raises UserError for settings that do not fit the images."""
    if config.class_conditional and not data.num_classes:
        raise UserError(f'--class_conditional needs labels; {data.name} has none.')
    if config.label >= 0 and not config.class_conditional:
        raise UserError('--label needs a model trained with --class_conditional.')
    if config.label >= max(data.num_classes, 1):
        raise UserError(
            f'--label={config.label} is not a class of {data.name}: they are 0 to '
            f'{data.num_classes - 1}.'
        )
    return binarize.num_values(data)


def first_batch(data: sources.ImageSet, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns images and labels from all over the training set, for initialisation.

    Without the images themselves, where a checkpoint is to be read, one of zeros.
    """
    if 'train' not in data.splits:
        return jnp.zeros((1, *data.image_shape), jnp.int32), jnp.zeros(1, jnp.int32)
    train = data.splits['train']
    num = min(_FIRST_BATCH, len(train))
    batch = train.fetch(np.arange(num) * len(train) // num)
    x = binarize.integers(jax.random.split(rng, num), batch['image'], data)
    return x, jnp.asarray(batch['label'])


def check_colours(features: int, channels: int) -> None:
    """Raises UserError unless the maps can be shared out evenly among the colours."""
    if features % channels:
        raise UserError(
            f'--features={features} must be a multiple of {channels}: every colour has '
            f'its own.'
        )


def micro_batch_size(config: Config, model: Model) -> int:
    """Returns how many examples' gradient is taken together, 0 for all of a device's.

    By default as many as the caches of a CPU hold of the activations.
    """
    if config.micro_batch or not model.heavy or jax.default_backend() != 'cpu':
        return config.micro_batch
    return math.gcd(config.batch_size // jax.device_count(), model.micro_batch)


def samplers(model: Model, temperature: float = 1.0) -> tuple[Callable, Callable]:
    """Returns what the three methods compile: all pixels in turn, and all at once.

    Both compute in full float32: by default a GPU or a TPU multiplies matrices in less,
    and draws would differ between the methods.

    Args:
        model: with a network that computes in float32.
        temperature: of the distributions.

    Returns:
        `generate(variables, x, known, uniform, h)`, the images by `incremental`, and
        `sweep(variables, x, uniform, h)`, for each value what its noise draws given x.
    """

    def quantile(params: Any, x: jax.Array, uniform: jax.Array) -> jax.Array:
        tempered = model.distribution.temper(params, temperature)
        return model.distribution.quantile(tempered, x, uniform)

    def generate(variables, x, known, uniform, h=None):
        with jax.default_matmul_precision('float32'):
            if model.incremental is not None:
                return model.incremental(variables, h, quantile, uniform, x, known)
            return autoregressive.incremental(
                model.network(variables, h), quantile, uniform, x, known,
                order=model.order,
            )

    def sweep(variables, x, uniform, h=None):
        with jax.default_matmul_precision('float32'):
            params = model.apply(variables, x, h, rngs=None, step=None, chunk=0)
            return quantile(params, x, uniform)

    return generate, sweep


class Setting(NamedTuple):
    """What the functions of one experiment have in common."""

    config: Config
    data: sources.ImageSet
    model: Model
    task: Task | None
    num_values: int  # V
    num_dims: int  # values whose log-probability it is about
    generate: Callable  # see `samplers`
    sweep: Callable

    def condition(self, x: jax.Array, labels: jax.Array) -> jax.Array | None:
        """Returns what an image is conditioned on."""
        if self.task is not None:
            return self.task.given(x)
        if not self.config.class_conditional:
            return None
        return jax.nn.one_hot(labels, self.data.num_classes)

    def log_prob(self, params: Any, x: jax.Array) -> jax.Array:
        """Returns log-probabilities [B], with a task those of what is missing."""
        log_prob, task = self.model.distribution.log_prob, self.task
        if task is None or task.missing.all():
            return log_prob(params, x)
        return log_prob(*pick((params, x), task.missing))


def build(
    config: Config, data: sources.ImageSet, *, make_model: Callable,
    task: Task | None = None,
) -> loop.Experiment:
    """Makes the pure functions of an experiment.

    Args:
        config: the settings.
        data: the image set.
        make_model: (config, data) -> Model.
        task: what of an image is given; then log-probabilities are those of the rest.
    """
    model = make_model(config, data)
    in_float32 = make_model(dataclasses.replace(config, dtype='float32'), data)
    generate, sweep = samplers(in_float32, config.temperature)
    pixels = math.prod(data.image_shape[:2]) if task is None else task.missing.sum()
    s = Setting(
        config, data, model, task, num_values(config, data),
        int(pixels) * data.image_shape[2], generate, sweep,
    )
    micro_batch = micro_batch_size(config, model)
    draw, host_sampler = generation.samplers_of(s)
    return loop.Experiment(
        init=functools.partial(_init, s),
        train_step=state_lib.make_train_step(
            functools.partial(_loss, s), ema_decay=config.ema, micro_batch=micro_batch
        ),
        micro_batch=micro_batch,
        eval_step=functools.partial(_eval_step, s),
        test_step=functools.partial(_test_step, s),
        test_chunks=model.test_chunks,
        summarize=functools.partial(_summarize, s),
        sample=draw,
        sampler=config.sampler,
        pictures=functools.partial(generation.pictures, s),
        convolutional=model.heavy,
        host_sampler=None if config.sampler == 'incremental' else host_sampler,
    )


def _init(s: Setting, rng: jax.Array) -> state_lib.TrainState:
    x, labels = first_batch(s.data, rng)
    variables = dict(s.model.init(rng, x, s.condition(x, labels)))
    params = variables.pop('params')
    return state_lib.create(
        params, optimizer.make(s.config), ema=s.config.ema > 0, model_state=variables
    )


def _loss(
    s: Setting, params: Any, model_state: Any, batch: state_lib.Batch, rngs: jax.Array,
    *, step: jax.Array, axis_name: str | None,
) -> state_lib.LossOutput:
    """The mean of -log p(x) of a batch, in nats."""
    pixel_rngs, model_rngs = jnp.moveaxis(jax.vmap(jax.random.split)(rngs), 1, 0)
    x = binarize.integers(pixel_rngs, batch['image'], s.data)
    out = s.model.apply(
        {'params': params, **model_state}, x, s.condition(x, batch['label']),
        rngs=model_rngs, step=step, chunk=jnp.int32(0),
    )
    log_px = s.log_prob(out, x)
    bits = likelihoods.bits_per_dim(log_px, s.num_dims).mean()
    return state_lib.LossOutput(-log_px.mean(), {'bits_per_dim': bits}, model_state)


def _log_prob(
    s: Setting, state: state_lib.TrainState, batch: state_lib.Batch, rng: jax.Array,
    chunk: jax.Array,
) -> jax.Array:
    rngs = state_lib.fold_in_each(rng, batch['index'])
    x = binarize.integers(rngs, batch['image'], s.data)
    out = s.model.apply(
        state.eval_variables, x, s.condition(x, batch['label']), rngs=None,
        step=state.step, chunk=chunk,
    )
    return s.log_prob(out, x)


def _eval_step(
    s: Setting, state: state_lib.TrainState, batch: state_lib.Batch, rng: jax.Array
) -> dict[str, jax.Array]:
    return {'loss': -_log_prob(s, state, batch, rng, jnp.int32(0))}


def _test_step(
    s: Setting, state: state_lib.TrainState, batch: state_lib.Batch, rng: jax.Array
) -> dict[str, jax.Array]:
    return {'log_px': _log_prob(s, state, batch, rng, batch['chunk'][0])}


def _summarize(s: Setting, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    log_px = likelihood.combine(arrays['log_px'])
    numbers = likelihood.report(log_px, s.num_dims, 'exact')
    return numbers if s.task is None else {**numbers, 'task': s.task.name}


def pick(tree: Any, where: np.ndarray) -> Any:
    """Takes the pixels of leaves [B, H, W, ...] that [H, W] marks: [B, N, 1, ...]."""
    rows, columns = np.nonzero(where)
    return jax.tree.map(lambda a: a[:, rows, columns][:, :, None], tree)
