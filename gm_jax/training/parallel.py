"""The one place that calls `jax.pmap` and that knows how many devices there are.

The state, the data set and the key are the same on every device (`None` axes); the
batch is split, and its leading axis is that of the devices. So a state never needs to
be replicated or unreplicated by hand, and what a step computes does not depend on the
number of devices.
"""

import collections
import os
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gm_jax import memory
from gm_jax.errors import UserError
from gm_jax.keys import fold_in_each
from gm_jax.training import processes, progress
from gm_jax.training.contracts import EvalStep, HostBatch, Sample, SampleMany
from gm_jax.training.train_state import Batch, Metrics, TrainState, TrainStep

__all__ = [
    'Agreement', 'AXIS', 'check_batch_size', 'check_devices', 'check_micro_batch',
    'device_memory', 'eval_many', 'EvalMany', 'for_each_image', 'init', 'join',
    'local', 'my_part', 'replicate', 'replicated', 'sample_many', 'split',
    'train_many', 'TrainMany',
]

AXIS = 'devices'

T = TypeVar('T')


class TrainMany(Protocol):
    """Up to K training steps on all devices, compiled; see `train_many`."""

    def __call__(
        self, state: TrainState, data: dict[str, jax.Array],
        batches: HostBatch, num: np.int32, rng: jax.Array, /,
    ) -> tuple[TrainState, Metrics]:
        """Run `num` steps."""

    def compile(
        self, state: TrainState, data: dict[str, jax.Array],
        batches: HostBatch, num: np.int32, rng: jax.Array, /,
    ) -> None:
        """Compile the steps for arguments like these; the state may be shapes."""


class EvalMany(Protocol):
    """An evaluation step on all devices, compiled: from and to [D, B/D, ...]."""

    def __call__(
        self, state: TrainState, batch: HostBatch, rng: jax.Array, /
    ) -> dict[str, jax.Array]:
        """Evaluate a batch."""


def check_devices() -> None:
    """Raise UserError if JAX cannot use the devices that the environment asks for."""
    try:
        jax.block_until_ready(jax.device_put(0))
    # JAX raises errors of many types here, some without a text.
    except Exception as error:
        reason = (str(error).splitlines() or [''])[0].rstrip('.')
        asked = ' '.join(
            f'{name}={value}' for name, value in sorted(os.environ.items())
            if name.startswith('JAX_')
        )
        raise UserError(
            f'JAX cannot use its devices: {reason or type(error).__name__}; the '
            f'environment has {asked or "no JAX_ variables"}.'
        ) from None


def check_batch_size(batch_size: int) -> None:
    """Raise UserError unless the devices divide the batch."""
    devices = jax.device_count()
    if batch_size % devices:
        raise UserError(
            f'--batch_size={batch_size} cannot be split evenly over {devices} devices: '
            f'make it a multiple of {devices}.'
        )


def device_memory() -> tuple[int, int]:
    """Return bytes of memory, and how many devices of this process share them."""
    if jax.default_backend() == 'cpu':
        return memory.of_host(), jax.local_device_count()
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get('bytes_limit', memory.of_host()), 1


def check_micro_batch(batch_size: int, micro_batch: int) -> None:
    """Raise UserError unless micro-batches divide each device's part of a batch."""
    per_device = batch_size // jax.device_count()
    if micro_batch and per_device % micro_batch:
        raise UserError(
            f'--micro_batch={micro_batch} must divide the {per_device} examples per '
            f'step that each device gets.'
        )


def replicate(tree: Any) -> Any:
    """Copy every leaf of a pytree to each device of this process."""
    return jax.device_put(tree, _on_every_device())


def _on_every_device() -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec())


def local(tree: Any) -> Any:
    """Return one device's copy of every leaf, of a device of this process.

    Programs that are compiled without `pmap`, and run in this process alone, need it.
    """
    return jax.tree.map(
        lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree
    )


def split(tree: Any, axis: int = 0) -> Any:
    """Split `axis` of every leaf over the devices: [.., B, ..] to [D, .., B/D, ..].

    D is the number of devices of this process, B its part of the batch.
    """
    num = jax.local_device_count()

    def one(x: np.ndarray) -> np.ndarray:
        x = np.asarray(x)
        shape = (*x.shape[:axis], num, x.shape[axis] // num, *x.shape[axis + 1:])
        return np.moveaxis(x.reshape(shape), axis, 0)

    return jax.tree.map(one, tree)


def join(tree: Any) -> Any:
    """Undo `split` on axis 0 and fetch to the host: [D, B/D, ...] to [B, ...].

    The result has the batches of all processes, and every process gets all of it.
    """
    flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)
    return processes.gather(flat)


def my_part(array: np.ndarray) -> np.ndarray:
    """Return the part of [B, ...] that is this process's: [B / P, ...]."""
    size = len(array) // jax.process_count()
    return array[jax.process_index() * size:][:size]


def replicated(shapes: Any) -> Any:
    """Return the jax.ShapeDtypeStruct of leaves as `replicate` puts them on devices."""
    sharding = _on_every_device()
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes
    )


def init(make: Callable[[jax.Array], TrainState]) -> Callable[[jax.Array], TrainState]:
    """Compile the function that makes the first state into one program.

    It runs once, so a CPU compiles it without optimizations, in half of the time.
    """
    cpu = jax.default_backend() == 'cpu'
    options = {'xla_backend_optimization_level': 0} if cpu else None
    return jax.jit(make, compiler_options=options)


def train_many(
    train_step: TrainStep, num_steps: int, what: str = 'the training step'
) -> TrainMany:
    """Compile up to K training steps into one dispatch on all devices.

    Small dense models are bound by dispatch and copies, so their steps run in a loop
    on the device. K = 1 compiles no loop at all: on the CPU, XLA runs a convolution
    in a loop 40 to 60 times slower than outside.

    Args:
        train_step: the step.
        num_steps: K.
        what: its name, shown while it compiles.

    Returns:
        `(state, data, batches, num, rng) -> (state, metrics)`. `batches` is a dict of
        [D, K, ..., B/D, ...] of which the first `num` <= K steps are run; it holds
        either images or, as 'row', their rows in `data`, a set kept on the devices.
        `metrics` is a dict of [K]. The state given is donated.
    """

    def one_step(
        state: TrainState, data: Batch, batch: Batch, rng: jax.Array
    ) -> tuple[TrainState, Metrics]:
        batch = dict(batch)
        if 'row' in batch:
            row = batch.pop('row')
            batch.update({name: array[row] for name, array in data.items()})
        return train_step(state, batch, rng, axis_name=AXIS)

    def many(
        state: TrainState, data: Batch, batches: Batch, num: jax.Array, rng: jax.Array
    ) -> tuple[TrainState, Metrics]:
        def at(k: Any) -> Batch:
            return jax.tree.map(lambda x: x[k], batches)

        if num_steps == 1:
            state, metrics = one_step(state, data, at(0), rng)
            return state, jax.tree.map(lambda m: m[None], metrics)
        shapes = jax.eval_shape(one_step, state, data, at(0), rng)[1]
        buffers = jax.tree.map(lambda m: jnp.zeros((num_steps,), m.dtype), shapes)

        def body(
            k: jax.Array, carry: tuple[TrainState, Metrics]
        ) -> tuple[TrainState, Metrics]:
            state, buffers = carry
            state, metrics = one_step(state, data, at(k), rng)
            return state, jax.tree.map(lambda b, m: b.at[k].set(m), buffers, metrics)

        return jax.lax.fori_loop(0, num, body, (state, buffers))

    return _Program(what, jax.pmap(
        many, axis_name=AXIS, in_axes=(None, None, 0, None, None),
        out_axes=(None, None), donate_argnums=0,
    ))


def eval_many(eval_step: EvalStep, what: str = 'the evaluation') -> EvalMany:
    """Compile an evaluation step for a batch that is split over all devices.

    Args:
        eval_step: the step.
        what: its name, shown while it compiles.
    """
    compiled = jax.pmap(eval_step, axis_name=AXIS, in_axes=(None, 0, None))
    return _Program(what, compiled)


def sample_many(sample: Sample) -> SampleMany:
    """Compile a sampler for all devices; image i has the key fold_in(rng, i)."""
    return for_each_image(sample, 'the sampler')


def for_each_image(
    function: Callable[[TrainState, jax.Array, jax.Array], T], what: str
) -> Callable[[TrainState, np.ndarray, jax.Array], T]:
    """Compile a function of the state, keys [B] and indices [B] of images to generate.

    Args:
        function: (state, rngs, indices) -> arrays [B, ...].
        what: its name, shown while it compiles.

    Returns:
        (state, indices [D, B/D], rng) -> arrays [D, B/D, ...]; image i has the key
        fold_in(rng, i), whatever else is generated with it.
    """

    def from_indices(state: TrainState, indices: jax.Array, rng: jax.Array) -> T:
        return function(state, fold_in_each(rng, indices), indices)

    compiled = jax.pmap(from_indices, axis_name=AXIS, in_axes=(None, 0, None))
    return _Program(what, compiled)


class _Program(Generic[T]):
    """A jitted function whose first call is shown as compiling."""

    def __init__(self, what: str, compiled: Any) -> None:
        self._what, self._compiled, self._ready = what, compiled, False

    def __call__(self, *args: Any) -> T:
        if self._ready:
            return self._compiled(*args)
        with progress.doing(f'compiling {self._what}'):
            # JAX cannot compile ahead for several processes.
            if not processes.several():
                self.compile(*args)
            self._ready = True
            return self._compiled(*args)

    def compile(self, *args: Any) -> None:
        """Compile; raise UserError for a program that this machine cannot hold."""
        found = self._compiled.lower(*args).compile().memory_analysis()
        self._ready = True
        if found is not None:
            limit, copies = device_memory()
            num_bytes = found.temp_size_in_bytes + found.argument_size_in_bytes
            memory.check(
                f'{self._what}, with these sizes of the batch and of the network,',
                copies * num_bytes, limit,
            )


class Agreement:
    """A logical OR over processes, without waiting for them.

    Every process must call `ask` equally often; answers come `delay` calls late.
    """

    def __init__(self, delay: int) -> None:
        """Start with no answers."""
        self._delay = delay
        self._answers: collections.deque[jax.Array] = collections.deque()
        self._any = jax.pmap(lambda x: jax.lax.pmax(x, AXIS), AXIS, out_axes=None)

    def ask(self, mine: bool) -> bool:
        """Send `mine` to all processes; return whether it was true in any of them."""
        if jax.process_count() == 1:
            return mine
        everywhere = np.full(jax.local_device_count(), mine, np.int32)
        self._answers.append(self._any(everywhere))
        if len(self._answers) <= self._delay:
            return False
        return bool(self._answers.popleft())
