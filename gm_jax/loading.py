"""A trained model in Python: settings, arrays, and pure functions.

    run = gm_jax.load('runs/vae')
    run.log_prob(x)                  # [N] nats; run.estimator says by which estimate
    run.sample(4, seed=1)            # the images of --mode=sample --seed=1
    run.decode(run.encode(x))
    jax.jit(run.functions.sample)(run.variables, rngs)

The data set is not needed, nothing is written, and no parameters are initialised.
"""

import dataclasses
import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.data import image_set
from gm_jax.data.image_set import ArrayExamples, ImageSet
from gm_jax.errors import UserError
from gm_jax.evaluation import likelihood
from gm_jax.keys import Stream, fold_in_each, stream
from gm_jax.training import (
    checkpoints,
    evaluate,
    exporting,
    parallel,
    settings,
)
from gm_jax.training.command import Command
from gm_jax.training.contracts import ByExample, Experiment, Sample
from gm_jax.training.progress import reporter
from gm_jax.training.settings import Config
from gm_jax.training.train_state import TrainState, of_variables

__all__ = [
    'decode', 'embed', 'encode', 'export', 'Functions', 'load', 'log_prob', 'Run',
    'sample',
]

# Variables of a model: 'params' and the other collections.
Variables = dict[str, Any]


class Functions(NamedTuple):
    """Pure functions of a trained model, for jit, grad, vmap and pmap.

    Those that the model does not have are None. Images x are [B, H, W, C] integers, as
    the image set has them.

    Attributes:
        log_prob: (variables, rng, x, label=None, chunk=0) -> [B] nats: log p(x), or the
            estimate of it that one chunk of samples gives.
        sample: (variables, rngs [B], index=None) -> uint8 [B, H, W, C]; index [B]
            chooses the class where these are drawn in turn.
        encode: (variables, rng, x) -> codes [B, Z].
        decode: (variables, z [B, Z]) -> uint8 [B, H, W, C].
        embed: (variables, rng, x) -> features [B, F].
    """

    log_prob: Callable[..., jax.Array] | None
    sample: Callable[..., jax.Array] | None
    encode: Callable[..., jax.Array] | None
    decode: Callable[..., jax.Array] | None
    embed: Callable[..., jax.Array] | None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Run:
    """A trained model.

    It has those of `log_prob`, `sample`, `encode`, `decode` and `embed` that the model
    has.

    Attributes:
        command: the experiment.
        config: the settings.
        data: the facts of the images, without images.
        results: the contents of results.json, {} before the end of training.
        step: the training step of the checkpoint.
        variables: the arrays that evaluation uses, 'params' and other collections.
        experiment: the functions that the experiment is made of.
        functions: the same as pure functions of variables.
    """

    command: Command
    config: Config
    data: ImageSet
    results: dict[str, Any]
    step: int
    variables: Variables
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
        return functools.partial(_METHODS[name], self)

    def __dir__(self) -> list[str]:
        """Name the fields and the methods that this model has."""
        return [*(f.name for f in dataclasses.fields(self)), *self._methods()]

    def _methods(self) -> list[str]:
        found = self.functions._asdict()
        return [name for name in _METHODS if found[name] is not None]

    @property
    def estimator(self) -> str:
        """What `log_prob` returns: 'exact', 'iwae-5000', ...; '' without one."""
        return self.results.get('metrics', {}).get('estimator', '')


def load(
    path: str | os.PathLike[str], *, checkpoint: str = 'last',
    experiment: Command | None = None,
) -> Run:
    """Load a trained model.

    Args:
        path: a work directory, or an exported model.
        checkpoint: 'last' or 'best'; an exported model has only one.
        experiment: the `main` of its module; by default config.json says which it is.

    Returns:
        The run.

    Raises:
        UserError: there is no such run, it is damaged, or it is of another experiment.
    """
    workdir = os.path.expanduser(os.fspath(path))
    config_path = os.path.join(workdir, 'config.json')
    if not os.path.exists(config_path):
        raise UserError(f'{workdir} holds no run: it has no config.json.')
    if checkpoint not in ('last', 'best'):
        raise UserError(f"checkpoint={checkpoint!r} is neither 'last' nor 'best'.")
    command = experiment or _find_command(settings.origin(config_path), config_path)
    config = settings.load(config_path, command.config_class, command.name)
    data = image_set.read_facts(os.path.join(workdir, 'data.json'))
    built = command.build(config, data)
    variables, step = _read(workdir, built, config, checkpoint)
    return Run(
        command=command, config=config, data=data,
        results=exporting.read_json(workdir, 'results.json'),
        step=step, experiment=built, functions=_functions(built),
        variables=jax.tree.map(jnp.asarray, variables),
    )


def _read(
    workdir: str, built: Experiment, config: Config, checkpoint: str
) -> exporting.Exported:
    """Read the variables and the step of an exported model, or of a checkpoint."""
    shapes = jax.eval_shape(built.init, stream(config.seed, Stream.INIT))
    if exporting.is_exported(workdir):
        return exporting.read(workdir, shapes.eval_variables)
    found = checkpoints.restore(workdir, shapes, checkpoint)
    if found is None:
        raise UserError(f'{workdir} has no checkpoint yet.')
    for warning in found.warnings:
        print(f'WARNING: {warning}; the one before it is used.', file=sys.stderr)
    return exporting.Exported(found.state.eval_variables, found.step)


def export(
    path: str | os.PathLike[str], to: str | os.PathLike[str], *,
    checkpoint: str = 'last', experiment: Command | None = None,
) -> None:
    """Write a trained model as files that anyone can read; see `exporting`.

    Args:
        path: a work directory.
        to: the directory that is made.
        checkpoint: 'last' or 'best'.
        experiment: as for `load`.

    Raises:
        UserError: as `load`, or the directory is there or cannot be written.
    """
    run = load(path, checkpoint=checkpoint, experiment=experiment)
    variables = jax.tree.map(np.asarray, run.variables)
    workdir = os.path.expanduser(os.fspath(path))
    exporting.write(workdir, os.fspath(to), variables, run.step, run.command.name)


def _find_command(origin: settings.Origin | None, path: str) -> Command:
    """Return the command of the experiment that config.json names."""
    if origin is None:
        raise UserError(
            f'{path} does not name its experiment, as older versions did not: pass '
            f'experiment=, the `main` of its module.'
        )
    own = f'gm_jax.experiments.{origin.experiment}'  # where a wheel has it
    for name in (origin.module, f'experiments.{origin.experiment}', own):
        try:
            module = _import(name)
        except (ImportError, OSError):
            continue
        for value in vars(module).values():
            if isinstance(value, Command) and value.name == origin.experiment:
                return value
    raise UserError(
        f'{path} is of the experiment {origin.experiment} in {origin.module}, which '
        f'cannot be imported here: pass experiment=, the `main` of its module.'
    )


def _import(name: str) -> Any:
    """Import a module, or a file whose path ends in .py."""
    if not name.endswith('.py'):
        return importlib.import_module(name)
    stem = os.path.splitext(os.path.basename(name))[0]
    spec = importlib.util.spec_from_file_location(stem, name)
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _functions(e: Experiment) -> Functions:
    """Return the functions of an experiment as functions of variables."""
    encode, decode, embed = e.codes
    evaluation = e.evaluation
    has_log_prob = isinstance(evaluation, ByExample) and evaluation.log_prob
    return Functions(
        log_prob=functools.partial(_pure_log_prob, e) if has_log_prob else None,
        sample=functools.partial(_pure_sample, e.sample) if e.sample else None,
        encode=functools.partial(_pure_of_images, encode) if encode else None,
        decode=functools.partial(_pure_decode, decode) if decode else None,
        embed=functools.partial(_pure_of_images, embed) if embed else None,
    )


def _pure_log_prob(
    e: Experiment, variables: Variables, rng: jax.Array, x: jax.Array,
    label: jax.Array | None = None, chunk: int | jax.Array = 0,
) -> jax.Array:
    evaluation = e.evaluation
    if not isinstance(evaluation, ByExample):
        raise ValueError('the model has no likelihood')
    index = jnp.arange(len(x), dtype=jnp.int32)
    batch = {
        'image': x, 'index': index, 'chunk': jnp.full_like(index, chunk),
        'label': jnp.full_like(index, -1) if label is None else label,
    }
    arrays = evaluation.test_step(of_variables(variables), batch, rng)
    return arrays[evaluation.log_prob]


def _pure_sample(
    sample: Sample, variables: Variables, rngs: jax.Array,
    index: jax.Array | None = None,
) -> jax.Array:
    index = jnp.arange(len(rngs), dtype=jnp.int32) if index is None else index
    return sample(of_variables(variables), rngs, index)


def _pure_of_images(
    function: Callable[..., jax.Array], variables: Variables, rng: jax.Array,
    x: jax.Array,
) -> jax.Array:
    rngs = fold_in_each(rng, jnp.arange(len(x)))
    return function(of_variables(variables), x, rngs)


def _pure_decode(
    decode: Callable[..., jax.Array], variables: Variables, z: jax.Array
) -> jax.Array:
    return decode(of_variables(variables), z)


def log_prob(
    run: Run, x: Any, *, seed: int | None = None, label: Any = None,
    batch_size: int | None = None,
) -> np.ndarray:
    """Compute log p(x), or the estimate of it that `run.estimator` names.

    Args:
        run: the model.
        x: [N, H, W, C] integers, as the image set has them.
        seed: of the noise of the estimate; None: that of the run. For the test set it
            is that of results.json.
        label: [N] classes, for a class-conditional model.
        batch_size: images at a time; None: as in evaluation.

    Returns:
        [N] float64, in nats.
    """
    x, evaluation = _images(run, x), run.experiment.evaluation
    if not isinstance(evaluation, ByExample):
        raise ValueError('the model has no likelihood')
    labels = np.full(len(x), -1) if label is None else np.asarray(label)
    if labels.shape != (len(x),):
        raise ValueError(f'label is {list(labels.shape)}, it must be [{len(x)}].')
    if label is None and getattr(run.config, 'class_conditional', False):
        raise ValueError('the model is class-conditional: pass label, [N] integers.')
    num_chunks = run.results.get('metrics', {}).get('importance_samples', 0)
    chunks = num_chunks // evaluation.chunk_size or evaluation.test_chunks
    arrays = evaluate.over_examples(
        _compiled(run, 'log_prob'), _on_devices(run),
        ArrayExamples(x, labels.astype(np.int32)),
        stream(run.config.seed if seed is None else seed, Stream.EVAL),
        batch_size or run.config.eval_batch, chunks, reporter('images', len(x)),
    )
    return likelihood.combine(arrays[evaluation.log_prob])


def sample(
    run: Run, num: int = 1, *, seed: int | None = None,
    temperature: float | None = None, label: int | str | None = None,
    given: Any = None, mask: Any = None,
) -> np.ndarray:
    """Generate images, the same as --mode=sample with this seed.

    Args:
        run: the model.
        num: N.
        seed: of the noise; None: that of the run.
        temperature: below 1 likely values become likelier (autoregressive models).
        label: the class, by its number or name; None: as in the run.
        given: [M, H, W, C] integers: image i keeps part of given image i mod M.
        mask: [H, W] or like `given`, 1 or true for the values to keep.

    Returns:
        [N, H, W, C] uint8.
    """
    if (given is None) != (mask is None) and not getattr(run.config, 'task', None):
        raise ValueError('given and mask belong together: pass both or none.')
    changes = {'temperature': temperature, 'label': label}
    wanted = {name: value for name, value in changes.items() if value is not None}
    fields = {f.name for f in dataclasses.fields(run.config)}
    for name in wanted:
        if name not in fields:
            raise ValueError(f'{run.command.name} has no {name} to choose.')
    if 'label' in wanted:
        wanted['label'] = str(wanted['label'])
    compiled = _sampler(run, tuple(sorted(wanted.items())))
    if given is not None:
        experiment = _variant(run, tuple(sorted(wanted.items())))
        if experiment.complete is None:
            raise ValueError(f'{run.command.name} cannot complete images.')
        images = np.asarray(given)
        mask = np.zeros(images.shape[1:3]) if mask is None else np.asarray(mask)
        compiled = parallel.sample_many(experiment.complete(images, mask))
    return evaluate.samples(
        compiled, _on_devices(run), num,
        stream(run.config.seed if seed is None else seed, Stream.SAMPLE),
        run.config.batch_size,
    )


def encode(run: Run, x: Any, *, seed: int | None = None) -> np.ndarray:
    """Return the codes [N, Z] of images x [N, H, W, C] integers."""
    return _by_batch(run, 'encode', _images(run, x), seed)


def embed(run: Run, x: Any, *, seed: int | None = None) -> np.ndarray:
    """Return the features [N, F] of images x [N, H, W, C] integers."""
    return _by_batch(run, 'embed', _images(run, x), seed)


def decode(run: Run, z: Any) -> np.ndarray:
    """Decode codes z [N, Z] to images [N, H, W, C] uint8."""
    z = np.asarray(z, np.float32)
    if z.ndim != 2 or not len(z):
        raise ValueError(f'z is {list(z.shape)}, it must be [N, Z].')
    function = _jitted(run, 'decode')
    return np.asarray(function(run.variables, z))


_METHODS: dict[str, Callable[..., np.ndarray]] = {
    'log_prob': log_prob, 'sample': sample, 'encode': encode, 'decode': decode,
    'embed': embed,
}


def _by_batch(run: Run, name: str, x: np.ndarray, seed: int | None) -> np.ndarray:
    rng = stream(run.config.seed if seed is None else seed, Stream.EVAL)
    function, size = _jitted(run, name), run.config.eval_batch
    parts = []
    for first in range(0, len(x), size):
        part = x[first:first + size]
        padded = np.resize(part, (min(size, len(x)), *part.shape[1:]))
        keyed = fold_in_each(rng, first) if first else rng
        parts.append(np.asarray(function(run.variables, keyed, padded))[:len(part)])
    return np.concatenate(parts)


@functools.lru_cache(maxsize=64)
def _jitted(run: Run, name: str) -> Callable[..., jax.Array]:
    return jax.jit(run.functions._asdict()[name])


@functools.lru_cache(maxsize=16)
def _compiled(run: Run, name: str) -> parallel.EvalMany:
    evaluation = run.experiment.evaluation
    if not isinstance(evaluation, ByExample):
        raise ValueError('the model has no likelihood')
    return parallel.eval_many(evaluation.test_step)


@functools.lru_cache(maxsize=16)
def _variant(run: Run, wanted: tuple[tuple[str, Any], ...]) -> Experiment:
    """Return the experiment with other settings of its sampler."""
    if not wanted:
        return run.experiment
    config = dataclasses.replace(run.config, **dict(wanted))
    return run.command.build(config, run.data)


@functools.lru_cache(maxsize=16)
def _sampler(run: Run, wanted: tuple[tuple[str, Any], ...]) -> Any:
    drawn = _variant(run, wanted).sample
    if drawn is None:
        raise ValueError('the model generates nothing')
    return parallel.sample_many(drawn)


@functools.lru_cache(maxsize=16)
def _on_devices(run: Run) -> TrainState:
    return parallel.replicate(of_variables(run.variables))


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
            f'x has values from {x.min()} to {x.max()}, the model takes {wanted}.'
        )
    return x.astype(np.uint8)
