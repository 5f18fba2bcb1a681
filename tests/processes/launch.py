"""Starts an experiment as several real processes on this machine."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import IO


def experiment(name: str) -> tuple[str, ...]:
    """Return the command that runs an experiment."""
    return sys.executable, '-m', f'experiments.{name}'


def start(
    processes: int,
    devices: int,
    program: Sequence[str],
    flags: Sequence[str],
    *,
    others: Sequence[str] = (),
    log: IO[bytes] | int = subprocess.PIPE,
) -> list[subprocess.Popen]:
    """Start the processes of a run, with as many devices each.

    Args:
        processes: how many.
        devices: the number of devices of each.
        program: the command, such as experiment('vae').
        flags: the flags of that command.
        others: flags that all but process 0 have in addition.
        log: where they write; by default each to a pipe of its own.

    Returns:
        The processes, process 0 first.
    """
    with socket.create_server(('127.0.0.1', 0)) as probe:
        address = f'127.0.0.1:{probe.getsockname()[1]}'
    started = []
    for process in range(processes):
        of_job = () if processes == 1 else (
            f'--coordinator_address={address}', f'--num_processes={processes}',
            f'--process_id={process}',
        )
        started.append(subprocess.Popen(
            [*program, *flags, *of_job, *(others if process else ())],
            stdout=log, stderr=subprocess.STDOUT,
            env={
                **os.environ, 'JAX_NUM_CPU_DEVICES': str(devices),
                'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3',
            },
        ))
    return started


def finish(
    started: Sequence[subprocess.Popen], timeout: float = 600
) -> list[tuple[int, str]]:
    """Wait for processes that write to pipes; return exit statuses and outputs."""
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        (process.returncode, output.decode(errors='replace'))
        for process, output in zip(started, outputs)
    ]
