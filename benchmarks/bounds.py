"""What a training step of each model could not be faster than on this machine.

    python -m benchmarks.bounds
    python -m benchmarks.bounds --names=vae,made --turns=5

Two parts of a step are timed alone, on the devices and with the parts of a batch that
the step has: its matrix products and convolutions, and the memory traffic of an update
of its parameters. What is left, such as activations, losses, random numbers and the
gathering of batches, counts as nothing. A higher ratio to PyTorch than that of
PyTorch's step to these two parts, "at most" in the table of speeds, would need faster
products. Rows that are in the file already are not measured again.

Fields of a row:

    products                 matrix products and convolutions of a step
    product_seconds          of all of them, each timed as a program of its own
    traffic_seconds          to read and write as many bytes as an update by Adam at
                             least: four arrays of all parameters, and three; an update
                             by SGD, two and one
"""

import argparse
import collections
import functools
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

from benchmarks import bench, machine, rows, turns
from benchmarks.cases import CASES, Case
from benchmarks.jaxprs import flops, products
from gm_jax.keys import Stream, stream
from gm_jax.training import cpu_devices, parallel
from gm_jax.training.contracts import Experiment
from gm_jax.training.train_state import Batch, TrainState

__all__ = ['main', 'measure']

# Small products are timed several at once: as many as have this FLOP, or this number.
_WORK, _COPIES = 2e8, 50


def _step_of_a_device(case: Case, experiment: Experiment) -> core.Jaxpr:
    """Return the training step, as a program of one device for its part of a batch."""
    lead: tuple[int, ...] = (case.config.batch_size // jax.local_device_count(),)
    if experiment.minibatches:
        lead = experiment.minibatches, *lead
    batch = {
        'image': jax.ShapeDtypeStruct((*lead, *case.image_shape), np.uint8),
        'label': jax.ShapeDtypeStruct(lead, np.int32),
        'index': jax.ShapeDtypeStruct(lead, np.int32),
    }
    state = jax.eval_shape(experiment.init, stream(0, Stream.INIT))

    def step(state: TrainState, batch: Batch) -> Any:
        return experiment.train_step(state, batch, stream(0, Stream.TRAIN))

    jaxpr = jax.make_jaxpr(step)(state, batch).jaxpr
    # Rules of gradients compute what no one may need, and XLA then leaves out.
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return used


def _seconds(run: Callable[[], Any], num_turns: int) -> float:
    """Return the least time of a call, which other processes disturb the least."""

    def many(num: int) -> None:
        for _ in range(num):
            out = run()
        jax.block_until_ready(out)

    many(1)
    once, _ = turns.timed(many, 1)
    num = max(1, round(0.1 / once))
    return min(turns.timed(many, num)[0] for _ in range(num_turns)) / num


def _of_product(equation: core.JaxprEqn, num_turns: int) -> float:
    """Return the seconds of one product or convolution, on every device at once.

    Several stand in one program, so that the time to start a program is shared; they
    have inputs of their own. Their results stay inside the program, since the pages of
    new arrays take longer than small products.
    """
    shapes: list[Any] = [value.aval for value in equation.invars]
    copies = max(1, min(_COPIES, round(_WORK / flops(equation))))
    rng = np.random.default_rng(0)
    values = [
        tuple(np.asarray(rng.standard_normal(s.shape), s.dtype) for s in shapes)
        for _ in range(copies)
    ]

    def compute(values: Any, each: jax.Array) -> list[jax.Array]:
        results = jax.lax.optimization_barrier([
            equation.primitive.bind(*v, **equation.params) for v in values
        ])
        return [each + result.ravel()[0] for result in results]

    program = jax.pmap(compute, in_axes=(None, 0))
    on_devices = parallel.replicate(values)
    each = np.zeros(jax.local_device_count(), np.float32)
    return _seconds(lambda: program(on_devices, each), num_turns) / copies


def _of_traffic(num_bytes: int, num_turns: int) -> float:
    """Return the seconds to read and write so many bytes on every device at once."""
    program = jax.pmap(lambda x: x + 1, donate_argnums=0)
    x = np.zeros((jax.local_device_count(), num_bytes // 8), np.float32)
    held = [program(x)]

    def run() -> jax.Array:
        held[0] = program(held[0])
        return held[0]

    return _seconds(run, num_turns)


def measure(case: Case, num_turns: int) -> dict[str, Any]:
    """Measure the parts of a case's step in this process."""
    cpu_devices.settle(case.config, '')
    experiment = case.command.build(case.config, bench.random_set(case))
    found: collections.Counter[str] = collections.Counter()
    example = {}
    for equation, times in products(_step_of_a_device(case, experiment)):
        name = str((
            equation.primitive, [v.aval for v in equation.invars],
            sorted(equation.params.items(), key=lambda item: item[0]),
        ))
        found[name] += times
        example[name] = equation
    seconds = sum(
        times * _of_product(example[name], num_turns) for name, times in found.items()
    )
    state = jax.eval_shape(experiment.init, stream(0, Stream.INIT))
    size = sum(x.size for x in jax.tree.leaves(state.params))
    arrays = 3 if case.config.optimizer == 'sgd' else 7
    traffic = _of_traffic(arrays * size * np.dtype(np.float32).itemsize, num_turns)
    return {
        'products': sum(found.values()), 'product_seconds': seconds,
        'traffic_seconds': traffic,
    }


def _in_a_process(name: str, num_turns: int) -> dict[str, Any]:
    command = [
        sys.executable, '-m', 'benchmarks.bounds', f'--names={name}', '--here',
        f'--turns={num_turns}',
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str]) -> int:
    """Measure what is not in the file yet, and write the rows; return the status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--names', default=','.join(case.name for case in CASES))
    parser.add_argument('--turns', type=int, default=5)
    parser.add_argument('--out', default='results/bench_bounds.json')
    parser.add_argument('--here', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.here:
        case, = (case for case in CASES if case.name == args.names)
        print(json.dumps(measure(case, args.turns)))
        return 0
    common = {
        'device': machine.device_name(), 'python': platform.python_version(),
        'jax': jax.__version__,
        'command': shlex.join(['python', '-m', 'benchmarks.bounds', *argv]),
    }
    names = rows.chosen(parser, '--names', args.names, [case.name for case in CASES])
    keys = [{'name': name} for name in names]
    measured = functools.partial(_in_a_process, num_turns=args.turns)
    return bool(rows.fill(args.out, keys, measured, common))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
