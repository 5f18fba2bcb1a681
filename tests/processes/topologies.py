"""The same runs on 1 x 1, 1 x 8, 2 x 4 and 4 x 2 processes x devices.

    python -m tests.processes.topologies --out=results/topologies.json

Compares losses, final evaluation and samples of every kind of model with those of one
process with one device, and writes the largest differences.
"""

import argparse
import json
import pathlib
import shlex
import sys
import tempfile

from tests.processes import families, launch

TOPOLOGIES = ((1, 1), (1, 8), (2, 4), (4, 2))


def run(
    processes: int, devices: int, workdir: pathlib.Path, steps: int, names: str
) -> None:
    """Run families, whose names have commas between them.

    Raises:
        RuntimeError: one has failed.
    """
    program = (sys.executable, '-m', 'tests.processes.families')
    started = launch.start(
        processes, devices, program, (str(workdir), str(steps), names)
    )
    for status, output in launch.finish(started, timeout=7200):
        if status:
            raise RuntimeError(f'{processes} x {devices}: {output[-3000:]}')


def main(argv: list[str]) -> None:
    """Compare all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--num_steps', type=int, default=50)
    parser.add_argument('--families', default=','.join(families.FAMILIES))
    parser.add_argument('--out', default='results/topologies.json')
    args = parser.parse_args(argv)
    rows = []
    command = shlex.join(['python', '-m', 'tests.processes.topologies', *argv])
    with tempfile.TemporaryDirectory() as directory:
        for processes, devices in TOPOLOGIES:
            workdir = pathlib.Path(directory, f'{processes}x{devices}')
            run(processes, devices, workdir, args.num_steps, args.families)
            for name in args.families.split(','):
                one = pathlib.Path(directory, '1x1', name)
                row = {
                    'model': name, 'processes': processes, 'devices_each': devices,
                    **families.differences(one, workdir / name), 'command': command,
                }
                print(row, flush=True)
                rows.append(row)
    pathlib.Path(args.out).write_text(json.dumps(rows, indent=2) + '\n')


if __name__ == '__main__':
    main(sys.argv[1:])
