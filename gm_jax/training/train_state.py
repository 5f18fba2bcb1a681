"""The training state and the gradient step that every model with one loss shares."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state

from gm_jax.keys import example_rngs

__all__ = [
    'Batch', 'begin_with', 'create', 'finish_step', 'LossFn', 'LossOutput',
    'make_train_step', 'Metrics', 'ModelState', 'of_variables', 'Params', 'TrainState',
    'TrainStep',
]

Params = Any  # a pytree of arrays: nested dicts by the names of modules
ModelState = dict[str, Any]  # variables other than parameters, by collection
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class TrainState(train_state.TrainState):
    """Flax's TrainState with everything else that an exact resume needs.

    `step` counts all batches drawn, including skipped ones, since the order of examples
    and all noise are functions of it.

    Attributes:
        model_state: variables other than parameters, {'batch_stats': ...} or {}.
        ema_params: exponential moving average of the parameters, None without one.
        skipped: [] int32, steps skipped in a row because the loss was not finite.
        skipped_total: [] int32, steps skipped since the start.
    """

    model_state: ModelState
    ema_params: Params
    skipped: jax.Array
    skipped_total: jax.Array

    @property
    def eval_params(self) -> Params:
        """The parameters to evaluate and to sample with."""
        return self.params if self.ema_params is None else self.ema_params

    @property
    def eval_variables(self) -> dict[str, Any]:
        """`eval_params`, with the variables other than parameters."""
        return {'params': self.eval_params, **self.model_state}


class LossOutput(NamedTuple):
    """What a loss function returns.

    Attributes:
        loss: [] mean over the batch, to be minimised.
        metrics: scalars, means over the batch.
        model_state: the new variables other than parameters.
    """

    loss: jax.Array
    metrics: Metrics
    model_state: ModelState


class LossFn(Protocol):
    """The loss of a batch, a pure function."""

    def __call__(
        self,
        params: Params,
        model_state: ModelState,
        batch: Batch,
        rngs: jax.Array,
        *,
        step: jax.Array,
        axis_name: str | None,
    ) -> LossOutput:
        """Compute the loss.

        Args:
            params: the parameters.
            model_state: the other variables.
            batch: arrays [B, ...].
            rngs: [B] one key per example.
            step: [] int32, for warm-ups.
            axis_name: the pmap axis over which the batch is spread; None: one device.
        """


class TrainStep(Protocol):
    """One step of training, a pure function."""

    def __call__(
        self,
        state: TrainState,
        batch: Batch,
        rng: jax.Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[TrainState, Metrics]:
        """Take the step.

        Args:
            state: the state before the step.
            batch: arrays [B, ...] with 'index' [B], or [M, B, ...] for M minibatches.
            rng: the key of training; keys of steps and examples derive from it.
            axis_name: as in `LossFn`. Losses and gradients are averaged over it.

        Returns:
            The state after the step, and scalars to log.
        """


def of_variables(variables: dict[str, Any]) -> TrainState:
    """Return a state that can be evaluated but not trained.

    Args:
        variables: 'params' and the other collections, as `eval_variables` has them.
    """
    others = {name: x for name, x in variables.items() if name != 'params'}
    return create(variables['params'], optax.identity(), model_state=others)


def begin_with(state: TrainState, variables: dict[str, Any]) -> TrainState:
    """Replace parameters of a first state and their average, and other variables.

    Args:
        state: the state at step 0.
        variables: 'params', some of its parameters by their names at the top, and any
            of its other collections.

    Raises:
        AssertionError: a shape or a dtype differs.
    """
    others = {name: x for name, x in variables.items() if name != 'params'}
    for old, new in (
        (state.params, variables['params']), (state.model_state, others)
    ):
        same = {name: old[name] for name in new}
        chex.assert_trees_all_equal_shapes_and_dtypes(same, new)
    params = {**state.params, **variables['params']}
    # A copy: two leaves must not share a buffer that is donated to a step.
    ema = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
    return state.replace(
        params=params, ema_params=ema, model_state={**state.model_state, **others}
    )


def create(
    params: Params,
    tx: optax.GradientTransformation,
    *,
    model_state: ModelState | None = None,
    ema: bool = False,
) -> TrainState:
    """Start the training state at step 0.

    Args:
        params: the initial parameters.
        tx: the optimizer.
        model_state: the variables other than parameters, by collection, such as the
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
        # A copy: two leaves must not share a buffer that is donated to a step.
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
        skipped=jnp.zeros((), jnp.int32),
        skipped_total=jnp.zeros((), jnp.int32),
    )
    return state.replace(step=jnp.zeros((), jnp.int32))


def make_train_step(
    loss_fn: LossFn, *, ema_decay: float = 0.0, micro_batch: int = 0
) -> TrainStep:
    """Make the training step of one loss.

    A step whose loss or gradient is not finite changes only the counters.

    Args:
        loss_fn: the loss.
        ema_decay: d in ema <- d ema + (1 - d) params. It grows from 0.1 as
            min(d, (1 + t) / (10 + t)), so that the start is forgotten soon.
        micro_batch: examples per gradient computation on a device; the step averages
            these gradients. 0: all examples at once. Small micro-batches fit into the
            caches of a CPU. Not for losses with BatchNorm, whose moments would be those
            of a micro-batch.

    Returns:
        The step. Its metrics are those of the loss, with 'loss' and 'grad_norm'.
    """

    def train_step(
        state: TrainState,
        batch: Batch,
        rng: jax.Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[TrainState, Metrics]:
        rngs = example_rngs(rng, state.step, batch['index'])

        def objective(
            params: Params, batch: Batch, rngs: jax.Array
        ) -> tuple[jax.Array, LossOutput]:
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


# (params, batch, rngs [B]) -> (gradient of the loss, what the loss function returned)
_Gradient = Callable[[Params, Batch, jax.Array], tuple[Params, LossOutput]]


def _by_parts(gradient: _Gradient, size: int) -> _Gradient:
    """Average a gradient over parts of `size` examples."""
    if not size:
        return gradient
    # Jitted so that it is traced once, though used twice.
    part_gradient = jax.jit(gradient)

    def averaged(
        params: Params, batch: Batch, rngs: jax.Array
    ) -> tuple[Params, LossOutput]:
        num = len(rngs) // size
        if num * size != len(rngs):
            raise ValueError(f'{size} does not divide a batch of {len(rngs)}')
        parts = jax.tree.map(
            lambda a: a.reshape(num, size, *a.shape[1:]), (batch, rngs)
        )

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, part_gradient(params, *part)), None

        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), parts)
        shapes = jax.eval_shape(part_gradient, params, *one)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda a: (a / num).astype(a.dtype), total)

    return averaged


def finish_step(
    state: TrainState, new: TrainState, finite: jax.Array, ema_decay: float
) -> TrainState:
    """Average the new parameters and count the step; undo it if not `finite`.

    Args:
        state: the state before the step.
        new: the state with new parameters, optimizer state and model state.
        finite: [] whether the step is to be kept.
        ema_decay: as in `make_train_step`.

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
