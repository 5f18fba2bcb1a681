"""A trained model: what `gm_jax.load` returns, and what can be done with it."""

import dataclasses
import functools
import operator
import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.data import image_set
from gm_jax.data.image_set import ArrayExamples, ImageSet
from gm_jax.evaluation import likelihood
from gm_jax.functions import Functions, Variables, functions
from gm_jax.keys import Stream, stream
from gm_jax.training import evaluate, parallel, progress
from gm_jax.training.command import Command
from gm_jax.training.contracts import ByExample, Experiment, Sample, SampleMany
from gm_jax.training.settings import Config
from gm_jax.training.train_state import TrainState, of_variables

__all__ = ['decode', 'embed', 'encode', 'log_prob', 'Run', 'sample']

# Programs of one kind that a run remembers: one for each choice of a sampler.
_REMEMBERED = 16


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Run:
    """A trained model.

    It has those of `log_prob`, `sample`, `encode`, `decode` and `embed` that the model
    has. They remember what they made of the variables: give it others by
    `dataclasses.replace(run, variables=...)`, not by changing these in place. A run can
    be pickled where its experiment can be imported.

    Attributes:
        command: the experiment.
        config: the settings.
        data: the facts of the images, without images.
        results: the numbers of these arrays, as results.json has them; {} if they have
            not been evaluated.
        step: the training step of the checkpoint.
        variables: the arrays that evaluation uses, 'params' and other collections;
            'shared' has the numbers that all examples share, if results.json has them.
        shared_by: the 'params' that 'shared' belongs to; None where there is none.
            With others `log_prob` computes these numbers anew.
        experiment: the functions that the experiment is made of.
        functions: the same as pure functions of variables.
    """

    command: Command
    config: Config
    data: ImageSet
    results: dict[str, Any]
    step: int
    variables: Variables
    shared_by: Any
    experiment: Experiment
    functions: Functions

    def __repr__(self) -> str:
        """Return what it is in one line."""
        shape = 'x'.join(map(str, self.data.image_shape))
        return (
            f'<run of {self.command.name} on {self.data.name}, images {shape}, step '
            f'{self.step}, has {", ".join(self._methods())}>'
        )

    def __getattr__(self, name: str) -> Any:
        """Return a method that this model has."""
        if name.startswith('__') or name not in _METHODS:
            raise AttributeError(f'a run has no attribute {name!r}')
        if name not in self._methods():
            raise AttributeError(
                f'{self.command.name} has no {name}: this model has '
                f'{", ".join(self._methods())}.'
            )
        return types.MethodType(_METHODS[name], self)

    def __dir__(self) -> list[str]:
        """Name the fields and the methods that this model has."""
        fields = [f.name for f in dataclasses.fields(self)]
        return [*fields, 'estimator', *self._methods()]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what the functions are made from, since closures cannot be."""
        made = ('experiment', 'functions')
        return _remade, ({
            f.name: getattr(self, f.name) for f in dataclasses.fields(self)
            if f.name not in made
        },)

    def _methods(self) -> list[str]:
        found = self.functions._asdict()
        found['sample'] = found['sample'] or self.experiment.complete
        return [name for name in _METHODS if found[name] is not None]

    @property
    def estimator(self) -> str:
        """What `log_prob` returns: 'exact', 'iwae-5000', ...; '' without one."""
        found = self.results.get('metrics', {}).get('estimator', '')
        return found or (_estimator(self) if self.functions.log_prob else '')


def _remade(fields: dict[str, Any]) -> Run:
    """Return a run from all of its fields but the functions."""
    config, data = fields['config'], fields['data']
    experiment = fields['command'].build(config, data)
    return Run(
        **fields, experiment=experiment, functions=functions(experiment, data, config)
    )


def _estimator(run: Run) -> str:
    """Return the name of the estimate of a run that has no results yet."""
    evaluation, rng = run.experiment.evaluation, jax.random.key(0)
    if not isinstance(evaluation, ByExample):
        return ''
    index, shape = np.zeros(1, np.int32), (1, *run.data.image_shape)
    batch = {
        'image': np.zeros(shape, np.uint8), 'label': index, 'index': index,
        'chunk': index,
    }
    state = of_variables(run.variables)
    shared = dict.fromkeys(evaluate.shared_names(evaluation, state), 0.0)
    arrays = jax.eval_shape(
        evaluation.test_step, evaluate.with_shared(state, shared), batch, rng
    )
    num = evaluation.test_chunks
    zeros = {name: np.zeros((1, num, *x.shape[1:])) for name, x in arrays.items()}
    zeros |= {name: np.zeros(()) for name in shared}
    return str(evaluation.summarize(zeros).get('estimator', ''))


def log_prob(
    run: Run, x: Any, *, seed: int | None = None, label: Any = None,
    batch_size: int | None = None,
) -> np.ndarray:
    """Compute log p(x), or the estimate of it that `run.estimator` names.

    Args:
        run: the model.
        x: [N, H, W, C] integers, as the image set has them.
        seed: of the noise of the estimate; None: that of the run. For the test set it
            is that of results.json. An estimate that all images share, such as log Z,
            is then that of results.json; where there is none, or with another seed or
            other parameters, the first call computes it.
        label: [N] classes, their numbers or names, for a class-conditional model.
        batch_size: images at a time; None: as in evaluation.

    Returns:
        [N] float64, in nats.
    """
    x, evaluation = _images(run, x), run.experiment.evaluation
    if not isinstance(evaluation, ByExample):
        raise ValueError('the model has no likelihood')
    labels = _labels(run, label, len(x))
    metrics = run.results.get('metrics', {})
    samples = metrics.get('importance_samples') or metrics.get('chain_states', 0)
    chunks = samples // evaluation.chunk_size or evaluation.test_chunks
    rng = stream(_seed(run, seed), Stream.EVAL)
    size = run.config.eval_batch
    if batch_size is not None:
        size = _positive('batch_size', batch_size)
    with progress.closed():
        arrays = evaluate.over_examples(
            _compiled(run), _evaluated(run, _seed(run, seed)),
            ArrayExamples(x, labels), rng, size, chunks,
            progress.reporter('images', len(x)),
        )
    return likelihood.combine(arrays[evaluation.log_prob])


def sample(
    run: Run, num: int | None = None, *, seed: int | None = None,
    temperature: float | None = None, label: int | str | None = None,
    given: Any = None, mask: Any = None,
) -> np.ndarray:
    """Generate images, the same as --mode=sample with this seed.

    Args:
        run: the model.
        num: N, at least as many as are given; None: as many, or 1.
        seed: of the noise; None: that of the run.
        temperature: below 1 likely values become likelier (autoregressive models), or
            latent variables stay nearer to 0 (flows).
        label: the class, by its number or name; None: as in the run.
        given: [M, H, W, C] integers below the number of values of the model, which is
            2 if it binarizes: image i keeps part of given image i mod M.
        mask: [H, W] or like `given`, 1 or true for the values to keep; None for a
            model that was trained for a task, which hides a part itself.

    Returns:
        [N, H, W, C] uint8, grey levels from 0 to 255 whatever the values of the set.
    """
    changes = _changes(run, temperature=temperature, label=label)
    if given is None and mask is None:
        sample_many = _sampler(run, changes)
    else:
        arrays = (None if x is None else _Content.of(x) for x in (given, mask))
        sample_many = _completer(run, changes, *arrays)
    num_given = 1 if given is None else len(np.asarray(given))
    num = _positive('num', num_given if num is None else num)
    if num < num_given:
        raise ValueError(f'num={num} is less than the {num_given} images given.')
    rng = stream(_seed(run, seed), Stream.SAMPLE)
    with progress.closed():
        return evaluate.samples(
            sample_many, _on_devices(run), num, rng, run.config.batch_size
        )


def _changes(run: Run, **wanted: Any) -> tuple[tuple[str, Any], ...]:
    """Return the settings of the sampler that are chosen."""
    fields = {f.name for f in dataclasses.fields(run.config)}
    chosen = {name: value for name, value in wanted.items() if value is not None}
    for name in chosen:
        if name not in fields:
            raise ValueError(f'{run.command.name} has no {name} to choose.')
        if np.ndim(chosen[name]):
            raise ValueError(f'{name}={chosen[name]!r} is not one value.')
        chosen[name] = np.asarray(chosen[name]).item()  # a number of NumPy or JAX
    label, names = chosen.get('label'), image_set.classes(run.data)
    if names and isinstance(label, int) and not isinstance(label, bool):
        # Classes may have numbers for names; those of the flag are names first.
        if not 0 <= label < len(names):
            raise ValueError(
                f'label={label} is not a class: they are 0 to {len(names) - 1}.'
            )
        chosen['label'] = names[label]
    elif label is not None:
        chosen['label'] = str(label)
    return tuple(sorted(chosen.items()))


def _complete(run: Run, experiment: Experiment, given: Any, mask: Any) -> Sample:
    """Return the sampler that keeps what is given of images."""
    if experiment.complete is None:
        raise ValueError(f'{run.command.name} cannot complete images.')
    whole = experiment.sample is None  # a task, which hides a part itself
    if given is None or (mask is None) != whole:
        raise ValueError(
            'the model was trained for a task: pass given alone, whole images.'
            if whole else 'given and mask belong together: pass both or none.'
        )
    images = np.asarray(given)
    return experiment.complete(
        images, np.ones(images.shape[1:3]) if whole else np.asarray(mask)
    )


def encode(run: Run, x: Any, *, seed: int | None = None) -> np.ndarray:
    """Return the codes [N, Z] of images x [N, H, W, C] integers."""
    return _of_images(run, 'encode', x, seed)


def embed(run: Run, x: Any, *, seed: int | None = None) -> np.ndarray:
    """Return the features [N, F] of images x [N, H, W, C] integers."""
    return _of_images(run, 'embed', x, seed)


def decode(run: Run, z: Any) -> np.ndarray:
    """Decode codes z [N, Z] to images [N, H, W, C] uint8."""
    z, size = np.asarray(z), run.experiment.codes.size
    is_real = any(jnp.issubdtype(z.dtype, kind) for kind in (jnp.floating, jnp.integer))
    if z.ndim != 2 or z.shape[1] != size or not len(z) or not is_real:
        raise ValueError(
            f'z is {z.dtype}{list(z.shape)}, the model takes numbers [N, {size}].'
        )
    with np.errstate(over='ignore'):
        z = z.astype(np.float32)
    if not np.isfinite(z).all():
        raise ValueError('z has values that are not finite numbers of float32.')
    function = _jitted(run, 'decode')
    return _by_batch(run, z, lambda z, index: function(run.variables, z))


_METHODS: dict[str, Callable[..., np.ndarray]] = {
    'log_prob': log_prob, 'sample': sample, 'encode': encode, 'decode': decode,
    'embed': embed,
}


def _of_images(run: Run, name: str, x: Any, seed: int | None) -> np.ndarray:
    rng, function = stream(_seed(run, seed), Stream.EVAL), _jitted(run, name)
    return _by_batch(
        run, _images(run, x), lambda x, index: function(run.variables, rng, x, index)
    )


def _by_batch(
    run: Run, x: np.ndarray, function: Callable[[np.ndarray, np.ndarray], jax.Array]
) -> np.ndarray:
    """Apply a function of rows and their indices to a batch at a time."""
    size, parts = run.config.eval_batch, []
    for first in range(0, len(x), size):
        part = x[first:first + size]
        padded = np.resize(part, (min(size, len(x)), *part.shape[1:]))
        index = np.arange(first, first + len(padded), dtype=np.int32)
        parts.append(np.asarray(function(padded, index))[:len(part)])
    return np.concatenate(parts)


def _once(make: Callable[..., Any]) -> Callable[..., Any]:
    """Remember what a function makes of a run, for as long as there is the run.

    What it makes must not refer to the run, which would then stay for ever.
    """
    made: weakref.WeakKeyDictionary[Run, Any] = weakref.WeakKeyDictionary()

    @functools.wraps(make)
    def once(run: Run, *args: Any) -> Any:
        if run not in made:
            this = weakref.ref(run)
            made[run] = functools.lru_cache(_REMEMBERED)(
                lambda *args: make(this(), *args)
            )
        return made[run](*args)

    return once


@_once
def _jitted(run: Run, name: str) -> Callable[..., jax.Array]:
    return jax.jit(run.functions._asdict()[name])


@_once
def _compiled(run: Run) -> parallel.EvalMany:
    evaluation = run.experiment.evaluation
    if not isinstance(evaluation, ByExample):
        raise ValueError('the model has no likelihood')
    return parallel.eval_many(evaluation.test_step)


@_once
def _variant(run: Run, wanted: tuple[tuple[str, Any], ...]) -> Experiment:
    """Return the experiment with other settings of its sampler."""
    if not wanted:
        return run.experiment
    config = dataclasses.replace(run.config, **dict(wanted))
    return run.command.build(config, run.data)


@_once
def _sampler(run: Run, changes: tuple[tuple[str, Any], ...]) -> SampleMany:
    sample = _variant(run, changes).sample
    if sample is None:
        raise ValueError(
            f'{run.command.name} was trained for a task: pass given, whole images of '
            f'which it is given a part.'
        )
    return parallel.sample_many(sample)


class _Content(NamedTuple):
    """An array that can be a key of a cache.

    Attributes:
        content: its bytes.
        dtype: its type.
        shape: its shape.
    """

    content: bytes
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, x: Any) -> '_Content':
        x = np.asarray(x)
        if x.dtype.hasobject:
            raise ValueError('given and mask must be arrays of numbers.')
        return cls(x.tobytes(), x.dtype.str, x.shape)

    def array(self) -> np.ndarray:
        return np.frombuffer(self.content, self.dtype).reshape(self.shape)


@_once
def _completer(
    run: Run, changes: tuple[tuple[str, Any], ...], given: _Content | None,
    mask: _Content | None,
) -> SampleMany:
    """Return the sampler that completes images, compiled once for each of them."""
    arrays = (None if x is None else x.array() for x in (given, mask))
    return parallel.sample_many(_complete(run, _variant(run, changes), *arrays))


@_once
def _on_devices(run: Run) -> TrainState:
    return parallel.replicate(of_variables(run.variables))


@_once
def _evaluated(run: Run, seed: int) -> TrainState:
    """Return the state with what all images share."""
    evaluation, state = run.experiment.evaluation, _on_devices(run)
    known = 'shared' in run.variables and seed == run.config.seed
    known = known and run.variables['params'] is run.shared_by
    if known or not isinstance(evaluation, ByExample):
        return state
    rng = stream(seed, Stream.EVAL)
    numbers = evaluate.shared(evaluation, state, rng, final=True)
    return evaluate.with_shared(state, numbers)


def _images(run: Run, x: Any) -> np.ndarray:
    """Return images as uint8, after a check; raise ValueError with a sentence."""
    x, shape, most = np.asarray(x), run.data.image_shape, run.data.num_values - 1
    wanted = f'[N, {", ".join(map(str, shape))}] integers from 0 to {most}'
    if x.dtype.kind not in 'uib':
        raise ValueError(
            f'x is {x.dtype}, the model takes {wanted}: multiply images in [0, 1] by '
            f'{most}, round them, and convert them to integers.'
        )
    if x.ndim != 4 or x.shape[1:] != shape or not len(x):
        raise ValueError(f'x is {list(x.shape)}, the model takes {wanted}.')
    if x.min() < 0 or x.max() > most:
        raise ValueError(
            f'x has values from {x.min()} to {x.max()}, the model takes {wanted}: grey '
            f'levels, as `sample` returns them, are np.rint(x * {most} / 255) there.'
        )
    return x.astype(np.uint8)


def _labels(run: Run, label: Any, num: int) -> np.ndarray:
    """Return the classes [N] int32 of images, after a check; -1 without classes."""
    conditional = getattr(run.config, 'class_conditional', False)
    if label is None:
        if conditional:
            raise ValueError(
                'the model is class-conditional: pass label, [N] classes.'
            )
        return np.full(num, -1, np.int32)
    if not conditional:
        raise ValueError('the model is not class-conditional: leave out label.')
    label, most = np.asarray(label), run.data.num_classes - 1
    if label.dtype.kind == 'U' or label.dtype == object and all(
        isinstance(name, str) for name in label.ravel()  # as pandas has them
    ):
        numbers = [
            image_set.class_number(run.data, name, 'label') for name in label.ravel()
        ]
        label = np.array(numbers, int).reshape(label.shape)
    if label.shape != (num,) or label.dtype.kind not in 'iu':
        raise ValueError(
            f'label is {label.dtype}{list(label.shape)}, it must be integers [{num}].'
        )
    if label.min() < 0 or label.max() > most:
        raise ValueError(
            f'label has values from {label.min()} to {label.max()}, the classes are '
            f'0 to {most}.'
        )
    return label.astype(np.int32)


def _seed(run: Run, seed: int | None) -> int:
    """Return the seed of the noise, by default that of the run."""
    if seed is None:
        return run.config.seed
    number = _integer(seed)
    if number is None or not 0 <= number < 2**32:
        raise ValueError(f'seed={seed!r} is not an integer from 0 to 2^32 - 1.')
    return number


def _positive(name: str, value: int) -> int:
    number = _integer(value)
    if number is None or number < 1:
        raise ValueError(f'{name}={value!r} is not an integer above 0.')
    return number


def _integer(value: Any) -> int | None:
    """Return an integer of Python, NumPy or JAX as one of Python; None for others."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
