"""The training state and the gradient step that every model with one loss shares."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax.training import train_state

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class TrainState(train_state.TrainState):
    """Flax's TrainState with what else an exact resume needs.

    `step` counts batches drawn, skipped ones included, since the order of examples
    and all noise are functions of it.
    """

    model_state: Any  # variables that are no parameters: {'batch_stats': ...}, or {}
    ema_params: Any  # exponential moving average of params, None without
    skipped: jax.Array  # [] int32, steps skipped in a row for a non-finite loss
    skipped_total: jax.Array  # [] int32

    @property
    def eval_params(self) -> Any:
        """The parameters to evaluate and to sample with."""
        return self.params if self.ema_params is None else self.ema_params

    @property
    def eval_variables(self) -> dict[str, Any]:
        """The same with the variables that are no parameters."""
        return {'params': self.eval_params, **self.model_state}


def create(
    params: Any,
    tx: optax.GradientTransformation,
    *,
    model_state: Any = None,
    ema: bool = False,
) -> TrainState:
    """Starts the training state at step 0.

    Args:
        params: the initial parameters.
        tx: the optimizer.
        model_state: the variables that are no parameters, by collection, such as the
            running moments of BatchNorm.
        ema: whether to keep an average of the parameters.

    Returns:
        A TrainState.
    """
    state = TrainState.create(
        apply_fn=None,
        params=params,
        tx=tx,
        model_state={} if model_state is None else model_state,
        # A copy: two leaves may not share a buffer that a step is given to overwrite.
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
        skipped=jnp.zeros((), jnp.int32),
        skipped_total=jnp.zeros((), jnp.int32),
    )
    return state.replace(step=jnp.zeros((), jnp.int32))


class LossOutput(NamedTuple):
    """What a loss function returns."""

    loss: jax.Array  # [] mean over the batch, to be minimised
    metrics: Metrics  # scalars, means over the batch
    model_state: Any  # the new variables that are no parameters


class LossFn(Protocol):
    """`loss_fn(params, model_state, batch, rngs, *, step, axis_name)`, see below."""

    def __call__(
        self,
        params: Any,
        model_state: Any,
        batch: Batch,
        rngs: jax.Array,  # [B] one key per example
        *,
        step: jax.Array,  # [] int32, for warm-ups
        axis_name: str | None,
    ) -> LossOutput: ...


def example_rngs(rng: jax.Array, step: jax.Array, index: jax.Array) -> jax.Array:
    """Derives one key per example: fold_in(fold_in(rng, step), index).

    Noise belongs to the example, so it is the same on any number of devices.

    Args:
        rng: the run's key.
        step: [] int32.
        index: [B] place of each example in the global batch, or in the data set.

    Returns:
        [B] keys.
    """
    return fold_in_each(jax.random.fold_in(rng, step), index)


def fold_in_each(rng: jax.Array, index: jax.Array) -> jax.Array:
    """Returns the keys fold_in(rng, i) for each i in index [B]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, index)


def split_each(rngs: jax.Array, num: int) -> jax.Array:
    """Splits each of [B] keys into `num`: [num, B] keys."""
    return jax.vmap(lambda rng: jax.random.split(rng, num), out_axes=1)(rngs)


def make_train_step(
    loss_fn: LossFn, *, ema_decay: float = 0.0, micro_batch: int = 0
) -> Callable:
    """Makes the step `(state, batch, rng, *, axis_name=None) -> (state, metrics)`.

    A step whose loss or gradient is not finite changes nothing but the counters.
    With `axis_name` the loss and the gradient are averaged over devices.

    Args:
        loss_fn: see LossFn.
        ema_decay: d in ema <- d ema + (1 - d) params. It grows from 0.1 as
            min(d, (1 + t) / (10 + t)), so that the start is forgotten soon.
        micro_batch: examples of a device whose gradient is taken together; the step
            adds up those of all. 0: all at once. Few at a time fit a CPU's cache. Not
            for losses with BatchNorm, whose moments would be of so few.

    Returns:
        The step, a pure function.
    """

    def train_step(
        state: TrainState,
        batch: Batch,
        rng: jax.Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[TrainState, Metrics]:
        rngs = example_rngs(rng, state.step, batch['index'])

        def objective(params: Any, batch: Batch, rngs: jax.Array) -> tuple:
            output = loss_fn(
                params, state.model_state, batch, rngs,
                step=state.step, axis_name=axis_name,
            )
            return output.loss, output

        gradient = _by_parts(jax.grad(objective, has_aux=True), micro_batch)
        grads, output = gradient(state.params, batch, rngs)
        metrics = dict(output.metrics, loss=output.loss)
        if axis_name is not None:
            grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(grad_norm)
        new = state.apply_gradients(grads=grads, model_state=output.model_state)
        new = finish_step(state, new, finite, ema_decay)
        return new, dict(metrics, grad_norm=grad_norm)

    return train_step


def _by_parts(gradient: Callable, size: int) -> Callable:
    """Averages `gradient(params, batch, rngs)` over parts of `size` examples."""

    def averaged(params: Any, batch: Batch, rngs: jax.Array) -> tuple[Any, LossOutput]:
        num = len(rngs) // size
        if num * size != len(rngs):
            raise ValueError(f'{size} does not divide a batch of {len(rngs)}')
        parts = jax.tree.map(
            lambda a: a.reshape(num, size, *a.shape[1:]), (batch, rngs)
        )

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, *part)), None

        shapes = jax.eval_shape(gradient, params, *jax.tree.map(lambda a: a[0], parts))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda a: (a / num).astype(a.dtype), total)

    return averaged if size else gradient


def finish_step(
    state: TrainState, new: TrainState, finite: jax.Array, ema_decay: float
) -> TrainState:
    """Averages the new parameters and counts the step; takes it back if not `finite`.

    Args:
        state: before the step.
        new: with new parameters, optimizer state and model state.
        finite: [] whether the step is to be kept.
        ema_decay: see `make_train_step`.

    Returns:
        The state after the step.
    """
    if state.ema_params is not None:
        t = state.step.astype(jnp.float32)
        d = jnp.minimum(ema_decay, (1 + t) / (10 + t))
        ema = jax.tree.map(
            lambda e, p: e + (1 - d) * (p - e), state.ema_params, new.params
        )
        new = new.replace(ema_params=ema)
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
    return new.replace(
        step=state.step + 1,
        skipped=jnp.where(finite, 0, state.skipped + 1),
        skipped_total=state.skipped_total + jnp.where(finite, 0, 1),
    )
