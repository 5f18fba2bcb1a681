"""A table of every model on one image set, under one protocol and one budget each.

    python -m experiments.compare --workdir=/tmp/all
    python -m experiments.compare --workdir=/tmp/all --models=NADE,VAE
    python -m experiments.compare --workdir=/tmp/binarized --dataset=binarized_mnist \
        --data_dir=DIR --budget_minutes=20

Each model trains by its own defaults, as many steps as take --budget_minutes on this
machine; evaluations come on top. A model with a likelihood sees the training images at
most --epochs times, since it would only overfit a small set. Then the checkpoint that
did best on the validation split is measured, alike for all. The same command goes on
where it was stopped, and does not repeat what is done. compare.json, compare.md and
report.html are written after every model.
"""

if __name__ == '__main__':
    from gm_jax import entry

    entry.begin()  # before JAX is imported

import argparse
import dataclasses
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any, NoReturn

import gm_jax
from gm_jax import survey
from gm_jax.data import binarize, files, image_set, sources
from gm_jax.data.binarize import WAYS
from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError, did_you_mean
from gm_jax.families import classifier, scores
from gm_jax.families.scores import Features
from gm_jax.keys import Stream, stream
from gm_jax.survey import Entry
from gm_jax.training import cpu_devices, pace, parallel, runs, screen, settings
from gm_jax.training.command import Command
from gm_jax.training.writers import without_nan, write_atomically

__all__ = ['main']

# Seconds that the evaluations of a model take, roughly, beside those of training.
_EVALUATIONS = 90
_MEASURED = 5.0  # seconds for which steps are timed, at most
# What the rows of one survey have in common, by flag.
_PROTOCOL = (
    'dataset', 'binarize', 'image_size', 'background', 'budget_minutes', 'epochs',
    'classifier',
)
# A training is evaluated so often, at most. The best checkpoint is measured.
_TIMES = 40
_SCORED = 1000  # samples


class _Stopped(Exception):
    """The survey was told to stop by a signal of this number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(argv: list[str]) -> int:
    """Run the survey; return the exit status."""
    args = _parse(argv)
    with screen.tolerant():
        try:
            if args.part:
                _PARTS[args.part](args, _entries(args.models)[0])
                return 0
            return _survey(args)
        except UserError as error:
            print(f'compare: {error}', file=sys.stderr)
            return 2
        except _Stopped as stopped:
            print('compare: interrupted: the same command goes on from here.',
                  file=sys.stderr)
            return 128 + stopped.number


def _parse(argv: list[str]) -> argparse.Namespace:
    about, _, more = (__doc__ or '').partition('\n')
    parser = argparse.ArgumentParser(
        'compare', description=about, epilog=more, allow_abbrev=False,
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--workdir', required=True, help='where all runs are written')
    parser.add_argument('--dataset', default='digits', help='as for the experiments')
    parser.add_argument('--data_dir', default='', help='where the prepared sets are')
    parser.add_argument(
        '--image_size', type=int, default=0, help='as for the experiments'
    )
    parser.add_argument('--background', default='white', help='the same')
    parser.add_argument(
        '--binarize', default='', choices=('', *WAYS),
        help='as for the experiments, for all models; by default threshold for digits '
        'and none for others. A Boltzmann machine and a GSN need bits.',
    )
    parser.add_argument(
        '--budget_minutes', type=float, default=5.0, help='training of each model'
    )
    parser.add_argument(
        '--epochs', type=float, default=200.0,
        help='passes over the training images, at most, of models with a likelihood',
    )
    parser.add_argument('--models', default='', help='their names, with commas')
    parser.add_argument(
        '--classifier', default='', help='work directory of the experiment '
        '`classifier`, whose features samples are compared by; by default pixels',
    )
    # Of the processes that a survey starts.
    parser.add_argument(
        '--part', default='', choices=['', *_PARTS], help=argparse.SUPPRESS
    )
    parser.add_argument('--validation', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    # A shell leaves the ~ of --workdir=~/all to the program.
    args.workdir = os.path.expanduser(args.workdir)
    args.binarize = args.binarize or (
        'threshold' if args.dataset == 'digits' else 'none'
    )
    return args


def _entries(names: str) -> list[Entry]:
    """Return the models of these names, in the order of the tree."""
    known = {entry.name.replace(', ', ' '): entry for entry in survey.TREE}
    chosen = [name.strip() for name in names.split(',') if name.strip()]
    for name in chosen:
        if name not in known:
            guess = did_you_mean(name, tuple(known)) or (
                f': there are {", ".join(known)}.'
            )
            raise UserError(f'--models: there is no {name!r}{guess}')
    return [entry for name, entry in known.items() if not chosen or name in chosen]


def _survey(args: argparse.Namespace) -> int:
    """Train and measure what is missing; write the table after each model."""
    for name in ('budget_minutes', 'epochs'):
        if not 0 < getattr(args, name) < math.inf:
            raise UserError(
                f'--{name}={getattr(args, name)} must be a finite number above 0.'
            )
    entries = _entries(args.models)
    # It raises UserError for what no experiment takes.
    settings.Config(image_size=args.image_size, background=args.background)
    # Before any work: that the set is there, and that it is the one of before.
    args.validation = False
    data = _load(args)
    if 'validation' not in data.splits:
        args.validation = True
        data = _load(args)
    # All models are compared with test images.
    scores.check_splits(
        dataclasses.replace(data, splits={'test': data.splits['test']})
    )
    if args.classifier:
        classifier.check(args.classifier, data)
    try:
        _claim(args, data)
    except OSError as reason:
        raise UserError(f'{args.workdir} cannot be written: {reason}.') from None
    left = [entry for entry in entries if not os.path.exists(_row_path(args, entry))]
    seconds = len(left) * (60 * args.budget_minutes + _EVALUATIONS)
    print(
        f'{len(entries)} models on {data.name}, of which {len(entries) - len(left)} '
        f'are done; the others take about {_span(seconds)}.', flush=True,
    )
    failed = 0
    if threading.current_thread() is threading.main_thread():  # others get no signals
        for which in (signal.SIGINT, signal.SIGTERM):
            signal.signal(which, _stop)
    for number, entry in enumerate(left, 1):
        started = time.monotonic()
        error = _one(args, entry)
        failed += bool(error)
        took = time.monotonic() - started
        print(
            f'{number}/{len(left)} {entry.name}: {error or f"{took / 60:.1f} minutes"}',
            flush=True,
        )
        _write(args)
    _write(args)
    print(f'the table is in {os.path.join(args.workdir, "report.html")}')
    return 1 if failed else 0


def _span(seconds: float) -> str:
    """Return a span of time in words."""
    if seconds < 3600:
        return f'{math.ceil(seconds / 60)} minutes'
    return f'{seconds / 3600:.1f} hours'


def _load(args: argparse.Namespace) -> ImageSet:
    """Load the images."""
    return sources.load(
        args.dataset, data_dir=args.data_dir, image_size=args.image_size,
        background=args.background, binarize=args.binarize, validation=args.validation,
    )


def _readable(args: argparse.Namespace) -> bool:
    """Return whether the images are there."""
    try:
        _load(args)
    except UserError:
        return False
    return True


def _stop(number: int, frame: Any) -> NoReturn:
    raise _Stopped(number)


def _claim(args: argparse.Namespace, data: ImageSet) -> None:
    """Write down the protocol, or raise UserError if the directory has another."""
    protocol = {name: getattr(args, name) for name in _PROTOCOL}
    path = os.path.join(args.workdir, 'protocol.json')
    os.makedirs(args.workdir, exist_ok=True)
    if os.path.exists(path):
        # An older version left all images at their size.
        before = {
            'image_size': 0, 'background': 'white',
            **files.read_object(path, 'the protocol of a survey'),
        }
        for name, value in protocol.items():
            if name not in before:
                raise UserError(
                    f'{args.workdir} has a survey of an older version: use another '
                    f'--workdir.'
                )
            if before[name] != value:
                raise UserError(
                    f'{args.workdir} has a survey with --{name}={before.get(name)}: '
                    f'use another --workdir for --{name}={value}.'
                )
    images, facts = os.path.join(args.workdir, 'data.json'), image_set.facts(data)
    if os.path.exists(images):  # an older version did not write it
        image_set.check_facts(images, facts)
    write_atomically(path, json.dumps(protocol, indent=2) + '\n')
    write_atomically(images, facts)


def _directory(args: argparse.Namespace, entry: Entry) -> str:
    name = ''.join(x if x.isalnum() else '_' for x in entry.name.lower())
    return os.path.join(args.workdir, name)


def _row_path(args: argparse.Namespace, entry: Entry) -> str:
    return os.path.join(_directory(args, entry), 'compare.json')


def _one(args: argparse.Namespace, entry: Entry) -> str:
    """Pace, train and measure a model, by processes; return what went wrong."""
    os.makedirs(_directory(args, entry), exist_ok=True)
    log = os.path.join(_directory(args, entry), 'log.txt')
    package = __spec__.parent if __spec__ is not None else 'experiments'
    for part in ('pace', 'train', 'assess'):
        if part == 'train':
            command = [f'{package}.{entry.experiment}', *_flags(args, entry)]
        else:
            name = entry.name.replace(', ', ' ')
            command = [
                f'{package}.compare', f'--part={part}', f'--models={name}', *(
                    f'--{flag}={getattr(args, flag)}'
                    for flag in ('workdir', 'data_dir', *_PROTOCOL)
                ), *_validation(args),
            ]
        with open(log, 'a', encoding='utf-8') as file:
            status, told = _finish([sys.executable, '-m', *command], file)
        if status < 0:
            return f'a process was killed by {signal.Signals(-status).name}'
        if status > 128:
            raise _Stopped(status - 128)
        if status:
            error = (told.strip().splitlines() or ['no message'])[-1]
            error = error.partition(': ')[2] or error  # without the name of the part
            row = {'name': entry.name, 'branch': entry.branch, 'error': error}
            # Such images cannot have the model, unless they have only gone away, or
            # another machine has more memory.
            short = ' of memory, and there are ', 'there is too little memory'
            lasting = part == 'pace' and not any(text in error for text in short)
            if status == 2 and lasting and _readable(args):
                write_atomically(_row_path(args, entry), json.dumps(row) + '\n')
            return error
    return ''


def _finish(command: list[str], file: IO[str]) -> tuple[int, str]:
    """Run a process to its end; return its status and what it says on stderr.

    If the survey is told to stop, so is the process, which then saves a checkpoint.
    Both of its streams go to the file.
    """
    told = ''
    with subprocess.Popen(
        command, stdout=file, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            _, told = process.communicate()
        except _Stopped:
            process.terminate()
            _, told = process.communicate()
            raise
        finally:
            file.write(told)
    return process.returncode, told


def _flags(args: argparse.Namespace, entry: Entry) -> list[str]:
    """Return the flags of the run: its pace has been measured."""
    steps = _read_pace(args, entry)['num_steps']
    return [
        *entry.flags, f'--workdir={_run(args, entry)}', f'--dataset={args.dataset}',
        f'--data_dir={args.data_dir}', f'--image_size={args.image_size}',
        f'--background={args.background}', f'--binarize={args.binarize}',
        *_validation(args), *_judge(args, entry), f'--num_steps={steps}',
        f'--eval_every={math.ceil(steps / _TIMES)}', '--checkpoint=best',
    ]


def _validation(args: argparse.Namespace) -> list[str]:
    """Return the flag of a set without a validation split, which gets one."""
    return ['--validation'] if args.validation else []


def _judge(args: argparse.Namespace, entry: Entry) -> list[str]:
    """Return the flag of a model that is judged by its samples, of a classifier."""
    fields = dataclasses.fields(_command(entry).config_class)
    judged = any(field.name == 'classifier' for field in fields)
    return [f'--classifier={args.classifier}'] if judged and args.classifier else []


def _command(entry: Entry) -> Command[Any]:
    return importlib.import_module(f'{__package__}.{entry.experiment}').main


def _run(args: argparse.Namespace, entry: Entry) -> str:
    return os.path.join(_directory(args, entry), 'run')


def _read_pace(args: argparse.Namespace, entry: Entry) -> dict[str, Any]:
    path = os.path.join(_directory(args, entry), 'pace.json')
    with open(path, encoding='utf-8') as file:
        return json.load(file)


def _pace(args: argparse.Namespace, entry: Entry) -> None:
    """Measure a training step, once, and write down how many fit into the budget."""
    path = os.path.join(_directory(args, entry), 'pace.json')
    if os.path.exists(path):
        return
    command = _command(entry)
    fields = dict(flag.removeprefix('--').split('=') for flag in entry.flags)
    config = command.config_class(
        dataset=args.dataset, data_dir=args.data_dir, image_size=args.image_size,
        background=args.background, binarize=args.binarize, validation=args.validation,
    )
    types = {name: type(getattr(config, name)) for name in fields}
    config = dataclasses.replace(
        config, num_steps=10**6, **{k: types[k](v) for k, v in fields.items()}
    )
    config = cpu_devices.settle(config, '')  # as the training will have them
    data = _load(args)
    experiment = command.build(config, data)
    state = parallel.replicate(
        parallel.init(experiment.init)(stream(config.seed, Stream.INIT))
    )
    _, seconds, _ = pace.measure(
        experiment, config, data, state, min(_MEASURED, 15 * args.budget_minutes)
    )
    images = config.batch_size * max(experiment.minibatches, 1)
    steps = 60 * args.budget_minutes / seconds
    if getattr(experiment.evaluation, 'log_prob', ''):
        steps = min(steps, args.epochs * len(data.splits['train']) / images)
    found = {
        'seconds_per_step': seconds, 'num_steps': max(1, int(steps)),
        'images_per_step': images, 'machine': _machine(),
    }
    write_atomically(path, json.dumps(found) + '\n')


def _machine() -> str:
    """Say what the model trains on: its devices, and the cores of a CPU."""
    if not hasattr(os, 'sched_getaffinity'):  # not on macOS
        return runs.devices()
    cores = len(os.sched_getaffinity(0))
    return f'{runs.devices()}, {cores} core{"s" if cores > 1 else ""}'


def _assess(args: argparse.Namespace, entry: Entry) -> None:
    """Measure a trained model, and write its row and its samples."""
    path = os.path.join(_run(args, entry), 'config.json')
    cpu_devices.settle(settings.load(path, _command(entry).config_class), path)
    run = gm_jax.load(_run(args, entry), checkpoint='best')
    if not run.results:  # of an older version, which evaluated it apart
        raise UserError(
            f'{_run(args, entry)} has no results of its best checkpoint: delete it.'
        )
    data = _load(args)
    features = scores.PIXELS
    if args.classifier:
        trained = classifier.load(args.classifier, data)
        features = Features('classifier', trained.features, trained.digest)
    speed = _read_pace(args, entry)
    row = {
        'name': entry.name, 'branch': entry.branch, 'one_pass': entry.one_pass,
        'unit': 'nats' if binarize.num_values(data) == 2 else 'bits/dim',
        'num_dims': math.prod(run.data.image_shape), 'machine': speed['machine'],
        'images_per_second': speed['images_per_step'] / speed['seconds_per_step'],
        'train_seconds': run.step * speed['seconds_per_step'],
        **survey.assess(run, data, features, _SCORED),
    }
    survey.save_samples(run, os.path.join(_directory(args, entry), 'samples.png'))
    text = json.dumps(without_nan(row), indent=2, allow_nan=False)
    write_atomically(_row_path(args, entry), text + '\n')


_PARTS = {'pace': _pace, 'assess': _assess}


def _write(args: argparse.Namespace) -> None:
    """Write the table of all models that are done, whichever were chosen now."""
    rows, samples = [], {}
    for entry in survey.TREE:
        if not os.path.exists(_row_path(args, entry)):
            continue
        rows.append(files.read_object(_row_path(args, entry), 'a row of the survey'))
        path = os.path.join(_directory(args, entry), 'samples.png')
        if os.path.exists(path):
            with open(path, 'rb') as picture:
                samples[entry.name] = picture.read()
    which = 'Every model'
    if len(rows) < len(survey.TREE):
        which = f'{len(rows)} of the {len(survey.TREE)} models'
    page = survey.page(
        f'{which} on {args.dataset}', _protocol(args, rows), rows, samples
    )
    for name, text in (
        ('compare.json', json.dumps(rows, indent=2) + '\n'),
        ('compare.md', survey.markdown(rows)), ('report.html', page),
    ):
        write_atomically(os.path.join(args.workdir, name), text)


def _protocol(
    args: argparse.Namespace, rows: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    machines = ' or '.join(sorted({r['machine'] for r in rows if 'machine' in r}))
    by = 'the features of one classifier' if args.classifier else 'pixels'
    return (
        f'Each model trained by the defaults of its experiment for as many steps as '
        f'take {args.budget_minutes:g} minutes on {machines or "this machine"}; those '
        f'with a likelihood for {args.epochs:g} epochs at most, because they overfit. '
        f'Measured is the checkpoint that did best on the validation split, of about '
        f'{_TIMES}: by its loss or, for GANs, by the distance of its samples. Images '
        f'seen and minutes are those until then, the minutes by the time of a step, '
        f'without evaluations.',
        'Test: minus the log-likelihood of the whole test set, by the estimator beside '
        'it; exact numbers, bounds and estimates by Markov chains are not of one kind. '
        'Train and validation: the same for 1,000 images, or all if there are fewer. '
        'The checkpoint was chosen by the validation images, which flatters their '
        'number. Lower is better.',
        'Seconds for 64 samples: their share of whole batches, of the size of those of '
        'training; the shortest of three times.',
        f'Distance of samples: Frechet distance between {_SCORED:,} samples, or as '
        f'many as there are test images, and test images, by {by}; lower is better. '
        f'Density and coverage, by the same features: higher is better.',
    )


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
