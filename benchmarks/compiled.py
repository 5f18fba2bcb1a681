"""Finds programs that a run compiles twice.

Runs an experiment as a command, with evaluations, checkpoints, samples and the final
evaluation, and then with --mode=sample. Each process writes the programs that it
compiles to a directory; one that is there twice, but for the lines of the source that
it is from, was compiled again for nothing:

    python -m benchmarks.compiled
    python -m benchmarks.compiled --names=vae,nade

Not by the lines of JAX_LOG_COMPILES=1: these have a name, shapes, types and shardings,
but `pmap` calls every program `_fun`, so that the evaluations during and after training
look alike, as do the programs of one function for two static arguments.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from benchmarks import rows, start
from experiments import NAMES

__all__ = ['main', 'repeated', 'run', 'twice']

# A run that does everything once at least.
_FLAGS = (
    '--dataset=digits', '--num_steps=4', '--eval_every=2', '--checkpoint_every=2',
    '--log_every=2', '--num_samples=4', '--test_examples=256',
)
_FILE = re.compile(r'jax_ir\d+_(?:jit_)?(?P<name>.*)_compile\.mlir')
# Lines of the source, defined at the end of a program and named within it.
_LOCATION = re.compile(r'^#loc.*\n| ?loc\((?:[^()"]|"[^"]*"|\([^()]*\))*\)', re.M)


def repeated(directory: pathlib.Path) -> dict[str, int]:
    """Return how often too many each program was compiled, by its name.

    Args:
        directory: the programs, as JAX_DUMP_IR_TO writes them.

    Raises:
        ValueError: there are none.
    """
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for path in directory.iterdir():
        if found := _FILE.fullmatch(path.name):
            text = _LOCATION.sub('', path.read_text())
            counts[found['name'], text] += 1
    if not counts:
        raise ValueError(f'{directory} has no programs')
    result: dict[str, int] = {}
    for (name, _), count in counts.items():
        if count > 1:
            result[name] = result.get(name, 0) + count - 1
    return result


def run(name: str, workdir: pathlib.Path, *flags: str) -> dict[str, int]:
    """Run an experiment, and return what it compiles more than once; see `repeated`.

    Args:
        name: the name of the experiment.
        workdir: its work directory.
        *flags: its flags.

    Raises:
        subprocess.CalledProcessError: it has failed.
    """
    with tempfile.TemporaryDirectory() as programs:
        env = {
            **os.environ, 'JAX_DUMP_IR_TO': programs, 'JAX_DUMP_IR_MODES': 'stablehlo',
            'JAX_ENABLE_COMPILATION_CACHE': '0', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
        }
        subprocess.run(
            start.command(name, workdir, *flags), env=env, check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        return repeated(pathlib.Path(programs))


def twice(name: str) -> dict[str, dict[str, int]]:
    """Return what a short run and --mode=sample compile twice, each by name."""
    flags = [*_FLAGS, *start.SHORT.get(name, ())]
    if name == 'time_series':
        flags[0] = '--dataset=synthetic:lorenz'
    with tempfile.TemporaryDirectory() as parent:
        workdir = pathlib.Path(parent, 'run')
        found = {'train': run(name, workdir, *flags)}
        if name not in start.NO_SAMPLER:
            found['sample'] = run(name, workdir, '--mode=sample')
    return found


def main(argv: list[str]) -> int:
    """Print what each experiment compiles twice; return 1 if there is anything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--names', default=','.join(NAMES))
    args = parser.parse_args(argv)
    number = 0
    for name in rows.chosen(parser, '--names', args.names, NAMES):
        found = twice(name)
        number += sum(map(len, found.values()))
        print(f'{name:24} {json.dumps(found)}', flush=True)
    return int(number > 0)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
