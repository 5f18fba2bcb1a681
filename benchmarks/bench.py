"""The speed of every experiment on this machine, beside the same network in PyTorch.

    python -m benchmarks.bench --out=results/bench_cpu.json
    python -m benchmarks.bench --names=vae,nade --turns=3

Both sides train the same network with Adam on the same random images, held in memory
and gathered by index. That they are the same is checked first: with the same weights
and the same noise, two training steps have the same losses to 1e-4. They take turns in
one process, as do evaluation and sampling, and only turns on a quiet machine count.
Each model is measured in a process of its own; models that are in the file already are
not measured again.

Fields of a row:

    train, evaluation, sampling   seconds of gm_jax and of PyTorch per step, for
                                  `num_images` images and for 64 images, and their ratio
                                  with its range
    flops                         of a training step, as PyTorch counts those of its
                                  matrix products and convolutions; products with one
                                  vector, as NADE's, are not counted
    matrix_rate                   FLOP per second of a product of 1024 x 1024 matrices
                                  by JAX, measured in the same process
    matrix_share                  flops / seconds / matrix_rate of gm_jax
    first_line_seconds            from the start of a command to its first metrics, by
                                  the defaults of the experiment
    peak_mib, torch_peak_mib      memory of a process that trains, at most
"""

import argparse
import functools
import json
import pathlib
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
from typing import Any

import jax
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import machine, rows, start, turns, twins
from benchmarks.cases import CASES, Case
from benchmarks.turns import Runner
from benchmarks.twins import Noise, Twin
from gm_jax.data import image_set, pipeline
from gm_jax.data.image_set import ImageSet
from gm_jax.keys import Stream, stream
from gm_jax.training import cpu_devices, dispatch, evaluate, parallel
from gm_jax.training.contracts import ByExample, Experiment
from gm_jax.training.train_state import TrainState

_SAMPLES = 64
_CHECKED = 1e-4  # relative difference of the losses of both sides
_BY_NAME = {case.name: case for case in CASES}
_SIDE, _PRODUCTS = 1024, 20  # of the matrix products whose rate is measured


def random_set(case: Case) -> ImageSet:
    """Return random images of the shape and the values that a case has."""
    rng = np.random.default_rng(0)
    shape = (case.num_images, *case.image_shape)
    images = rng.integers(0, case.num_values, shape, dtype=np.uint8)
    labels = np.full(case.num_images, -1, np.int32)
    if case.num_classes:
        labels = rng.integers(0, case.num_classes, case.num_images, dtype=np.int32)
    examples = image_set.ArrayExamples(images, labels)
    return ImageSet(
        name='random', image_shape=case.image_shape, num_values=case.num_values,
        num_classes=case.num_classes, splits={'train': examples, 'test': examples},
        entropy=None, binarize='none',
    )


def check(case: Case, data: ImageSet, experiment: Experiment, twin: Twin) -> float:
    """Take two training steps on both sides, and return how far their losses differ.

    Raises:
        ValueError: further than 1e-4.
    """
    size, rng = case.config.batch_size, stream(0, Stream.TRAIN)
    index = np.arange(size, dtype=np.int32)
    batch = {**data.splits['train'].fetch(index), 'index': index}
    x = twin.load(np.asarray(batch['image']))
    many = max(experiment.minibatches, 1)
    if experiment.minibatches:
        batch = {name: np.stack([a] * many) for name, a in batch.items()}
    state = jax.jit(experiment.init)(stream(0, Stream.INIT))
    twin.copy(*jax.tree.map(np.asarray, (state.params, state.model_state)))
    step, worst = jax.jit(experiment.train_step), 0.0
    for number in range(2):
        noise = twin.noise(rng, number, size)
        if case.num_classes:
            noise['label'] = data.splits['train'].fetch(index)['label'].astype(np.int64)
        state, metrics = step(state, batch, rng)
        theirs = twin.step(x, {k: torch.tensor(np.array(a)) for k, a in noise.items()})
        for name, value in theirs.items():
            ours = float(metrics[name])
            difference = abs(ours - float(value)) / max(abs(ours), 1e-3)
            worst = max(worst, difference)
            if not difference <= _CHECKED:
                raise ValueError(
                    f'{case.name}: {name} of step {number} is {ours:.6g} in gm_jax and '
                    f'{float(value):.6g} in PyTorch'
                )
    return worst


class Ours:
    """The loops of a run: the same steps, input pipeline, and dispatches."""

    def __init__(self, case: Case, data: ImageSet, experiment: Experiment) -> None:
        self.config, self.experiment = case.config, experiment
        self.examples = data.splits['train']
        self.num = dispatch.steps_per_dispatch(case.config, experiment.single_steps)
        self._train = parallel.train_many(experiment.train_step, self.num)
        self._sample = None
        if experiment.sample is not None:
            self._sample = parallel.sample_many(experiment.sample)
        self._eval = None
        if isinstance(experiment.evaluation, ByExample):
            self._eval = parallel.eval_many(experiment.evaluation.eval_step)
        images = self.examples.fetch(np.arange(len(self.examples)))
        self._resident = parallel.replicate(
            {'image': images['image'], 'label': images['label']}
        )
        self.state: TrainState = parallel.replicate(
            parallel.init(experiment.init)(stream(0, Stream.INIT))
        )
        self._first = 0

    def train(self, num_steps: int) -> None:
        """Run `num_steps` training steps, rounded up to whole dispatches."""
        batch, many = self.config.batch_size, max(self.experiment.minibatches, 1)
        shape: tuple[int, ...] = (self.num, batch)
        if self.experiment.minibatches:
            shape = self.num, many, batch
        place = np.broadcast_to(np.arange(batch, dtype=np.int32), shape)
        last = self._first + num_steps
        while self._first < last:
            rows = pipeline.example_order(
                0, self._first * many, batch, len(self.examples),
                num_steps=self.num * many,
            )
            batches = {'row': rows.astype(np.int32).reshape(shape), 'index': place}
            self.state, _ = self._train(
                self.state, self._resident, parallel.split(batches, len(shape) - 1),
                np.int32(self.num), stream(0, Stream.TRAIN),
            )
            self._first += self.num
        jax.block_until_ready(self.state)

    def evaluate(self, num: int) -> None:
        """Evaluate all images as during training, `num` times."""
        assert self._eval is not None
        # What all examples share, log Z of a Boltzmann machine, is not timed.
        evaluation = self.experiment.evaluation
        names = evaluate.shared_names(evaluation, self.state)
        state = evaluate.with_shared(self.state, dict.fromkeys(names, 0.0))
        for _ in range(num):
            evaluate.over_examples(
                self._eval, state, self.examples, stream(0, Stream.EVAL),
                self.config.eval_batch,
            )

    def sample(self, num: int) -> None:
        """Draw 64 images, `num` times."""
        assert self._sample is not None
        for _ in range(num):
            evaluate.samples(
                self._sample, self.state, _SAMPLES, stream(0, Stream.SAMPLE), _SAMPLES
            )


class Theirs:
    """The loops of PyTorch."""

    def __init__(self, case: Case, data: ImageSet, twin: Twin) -> None:
        self.config, self.twin = case.config, twin
        examples = data.splits['train'].fetch(np.arange(case.num_images))
        self._data = twin.load(examples['image'])
        self._labels = None
        if case.num_classes:
            self._labels = torch.from_numpy(examples['label']).long()

    def train(self, num_steps: int) -> None:
        """Run training steps on random images."""
        size = self.config.batch_size
        for _ in range(num_steps):
            rows = torch.randint(len(self._data), (size,))
            self.twin.step(self._data[rows], self._noise(rows, size))

    def evaluate(self, num: int) -> None:
        """Evaluate all images, `num` times."""
        assert self.twin.evaluate is not None
        for _ in range(num):
            for first in range(0, len(self._data), self.config.eval_batch):
                rows = slice(first, first + self.config.eval_batch)
                x = self._data[rows]
                self.twin.evaluate(x, self._noise(rows, len(x)))

    def _noise(self, rows: torch.Tensor | slice, num: int) -> Noise:
        """Draw the noise of some images, and add their labels if there are any."""
        noise = self.twin.draw(num)
        if self._labels is None:
            return noise
        return {**noise, 'label': self._labels[rows]}

    def sample(self, num: int) -> None:
        """Draw 64 images, `num` times."""
        assert self.twin.sample is not None
        for _ in range(num):
            self.twin.sample(_SAMPLES)


def matrix_rate() -> float:
    """Return the FLOP per second of products of large float32 matrices."""
    a = jax.random.normal(jax.random.key(0), (_SIDE, _SIDE)) / _SIDE**0.5

    @jax.jit
    def products(a: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, _PRODUCTS, lambda _, b: a @ b, a)

    def run(num: int) -> None:
        for _ in range(num):
            jax.block_until_ready(products(a))

    run(1)
    seconds = min(turns.timed(run, 1)[0] for _ in range(5))
    return 2 * _SIDE**3 * _PRODUCTS / seconds


class _Counter(TorchDispatchMode):
    """Counts FLOP; unlike PyTorch's own, in the gradient of a gradient too."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        # By PyTorch's own formulas.
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def count_flops(theirs: Theirs) -> int:
    """Return the FLOP of a training step in PyTorch."""
    with _Counter() as counter:
        theirs.train(1)
    return counter.total


def measure(case: Case, num_turns: int, max_load: float) -> dict[str, Any]:
    """Measure a case in this process."""
    cpu_devices.settle(case.config, '')  # as the command does
    twins.prepare()
    data = random_set(case)
    experiment = case.command.build(case.config, data)
    twin = case.make_twin(case.config, case.image_shape)
    row: dict[str, Any] = {
        'settings': case.settings, 'image_shape': list(case.image_shape),
        'num_values': case.num_values, 'num_images': case.num_images,
        'loss_difference': check(case, data, experiment, twin),
    }
    ours, theirs = Ours(case, data, experiment), Theirs(case, data, twin)
    whats: dict[str, tuple[Runner, Runner | None]] = {
        'train': (ours.train, theirs.train)
    }
    if isinstance(experiment.evaluation, ByExample) and twin.evaluate is not None:
        whats['evaluation'] = ours.evaluate, theirs.evaluate
    if experiment.sample is not None:
        whats['sampling'] = ours.sample, theirs.sample if twin.sample else None
    for what, (one, other) in whats.items():
        multiple = ours.num if what == 'train' else 1
        row[what] = _compare(one, other, multiple, num_turns, max_load)
    flops, rate = count_flops(theirs), matrix_rate()
    seconds = row['train']['seconds']
    per_step = case.config.batch_size * max(experiment.minibatches, 1)
    return {
        **row, 'images_per_s': round(per_step / seconds, 1),
        'steps_per_dispatch': ours.num, 'devices': jax.local_device_count(),
        'flops': flops, 'matrix_rate': round(rate),
        'matrix_share': round(flops / seconds / rate, 3),
    }


def _compare(
    one: Runner, other: Runner | None, multiple: int, num_turns: int, max_load: float
) -> dict[str, Any]:
    """Time two loops for about a second per turn; only the first if there is one."""
    one(multiple)
    seconds, _ = turns.timed(one, multiple)
    steps = multiple * max(1, round(1 / seconds))
    if other is None:
        median = turns.alone(one, turns=num_turns, num_steps=steps, max_load=max_load)
        return {'seconds': median, 'turns': num_turns}
    other(1)
    return turns.compare(
        one, other, turns=num_turns, num_steps=steps, max_load=max_load
    )


def peak(case: Case, side: str) -> float:
    """Train for some steps in this process, and return its largest memory in MiB."""
    cpu_devices.settle(case.config, '')
    twins.prepare()
    data = random_set(case)
    if side == 'ours':
        ours = Ours(case, data, case.command.build(case.config, data))
        ours.train(2 * ours.num)
    else:
        Theirs(case, data, case.make_twin(case.config, case.image_shape)).train(20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _in_a_process(name: str, what: str, args: argparse.Namespace) -> Any:
    """Run a part of this program in a process of its own.

    Raises:
        subprocess.CalledProcessError: it has failed.
    """
    command = [
        sys.executable, '-m', 'benchmarks.bench', f'--names={name}', f'--only={what}',
        f'--turns={args.turns}', f'--max_load={args.max_load}',
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything of a case."""
    case = _BY_NAME[name]
    found: dict[str, Any] = {
        **_in_a_process(name, 'speed', args),
        'peak_mib': round(_in_a_process(name, 'ours', args)),
        'torch_peak_mib': round(_in_a_process(name, 'theirs', args)),
    }
    with tempfile.TemporaryDirectory() as parent:
        seconds = start.seconds_to_first_line(
            case.command.name, pathlib.Path(parent, 'run')
        )
    return {**found, 'first_line_seconds': round(seconds, 1)}


def main(argv: list[str]) -> int:
    """Measure what is not in the file yet, and write the rows; return the status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--names', default=','.join(case.name for case in CASES))
    parser.add_argument('--turns', type=int, default=7)
    parser.add_argument(
        '--max_load', type=float, default=0.05,
        help='share of the CPU that other processes may use in a turn that counts',
    )
    parser.add_argument('--out', default='results/bench_cpu.json')
    parser.add_argument('--only', default='', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    names = rows.chosen(parser, '--names', args.names, _BY_NAME)
    chosen = [_BY_NAME[name] for name in names]
    if args.only == 'speed':
        print(json.dumps(measure(chosen[0], args.turns, args.max_load)))
        return 0
    if args.only:
        print(json.dumps(peak(chosen[0], args.only)))
        return 0
    common = {
        'device': machine.device_name(), 'python': platform.python_version(),
        'jax': jax.__version__, 'torch': torch.__version__,
        'command': shlex.join(['python', '-m', 'benchmarks.bench', *argv]),
    }
    keys = [{'name': case.name} for case in chosen]
    return bool(rows.fill(
        args.out, keys, functools.partial(row, args=args), common
    ))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
