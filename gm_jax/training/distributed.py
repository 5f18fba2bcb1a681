"""Joins several processes into one run.

JAX finds the processes where it knows the cluster (a TPU pod, Slurm, Open MPI,
Kubernetes); elsewhere flags name them.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator

import jax

from gm_jax.errors import UserError
from gm_jax.training import processes, watch

__all__ = ['initialize', 'report']

# Seconds within which the processes of a run must have started.
_MEETING = 300
# Seconds after which one that waits says so.
_REMINDING = 15
# Seconds for which a process that cannot start waits to tell the others.
_REPORTING = 30
# Seconds without a heartbeat after which JAX gives up on a process, in case its host
# vanishes without closing its connections.
_HEARTBEAT = 40


def initialize(
    coordinator_address: str = '', num_processes: int = 0, process_id: int = -1
) -> None:
    """Join the processes of a run; call this before any other use of JAX.

    Args:
        coordinator_address: HOST:PORT where process 0 listens; '': JAX finds the other
            processes if it knows the cluster; otherwise this process is alone.
        num_processes: the number of processes.
        process_id: the index of this process.

    Raises:
        UserError: the arguments do not fit together, or other processes are not found.
    """
    given = _check_flags(coordinator_address, num_processes, process_id)
    if num_processes == 1 or jax.distributed.is_initialized():
        return
    if given:
        _check_address(coordinator_address, is_mine=process_id == 0)
    elif os.environ.get('SLURM_NTASKS') == '1' or _is_a_lone_pod():
        return  # one process on a cluster: it has all GPUs of the node
    # JAX's own handler would take SIGTERM from the loop's handler.
    jax.config.update('jax_enable_preemption_service', False)
    # JAX would abort if the other processes do not come within its own timeout.
    patience = threading.Timer(_MEETING, _alone_too_long)
    reminder = threading.Timer(_REMINDING, _still_waiting, (coordinator_address,))
    for timer in (patience, reminder):
        timer.daemon = True
        timer.start()
    try:
        if given:
            _meet(coordinator_address, num_processes, process_id)
        else:
            _meet(None, None, None)
        if jax.process_count() > 1:
            watch.start()
    except ValueError:
        if given:
            raise
        _check_alone()  # not on a cluster
    except (OSError, jax.errors.JaxRuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'the processes did not find each other: {reason}.') from None
    except RuntimeError as error:
        if not given and 'must be called before' in str(error):
            return  # inside a program that uses JAX already
        reason = str(error).splitlines()[0]
        raise UserError(f'the processes could not be started: {reason}.') from None
    # What JAX asks to find the processes, such as Kubernetes, may raise anything.
    except Exception as error:
        if given:
            raise
        raise UserError(
            f'JAX could not find the other processes here ({error!r}): pass '
            f'--coordinator_address, --num_processes and --process_id.'
        ) from None
    finally:
        patience.cancel()
        reminder.cancel()


def report(place: tuple[str, int, int] | None, problem: str) -> None:
    """Tell the other processes of a run why this one ends before it has met them.

    They would wait for it in vain. Where no flags name the processes, all of them have
    the same flags, and the same problem.

    Args:
        place: the first three arguments of `initialize`, as the flags give them.
        problem: the sentence that the user has read.
    """
    if place is None or jax.distributed.is_initialized():
        return
    patience = threading.Timer(_REPORTING, os._exit, (2,))
    patience.daemon = True
    patience.start()
    with contextlib.suppress(UserError):
        initialize(*place)
        processes.check_alike({}, problem)
    patience.cancel()


def _is_a_lone_pod() -> bool:
    """Return whether this is a pod of Kubernetes that is no part of an indexed job.

    JAX takes every pod for one of such a job, and fails where it is not.
    """
    if 'KUBERNETES_SERVICE_HOST' not in os.environ:
        return False
    others = (
        'JOB_COMPLETION_INDEX', 'TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES',
        'SLURM_JOB_ID', 'OMPI_COMM_WORLD_SIZE', 'PMI_SIZE',
    )
    return not any(name in os.environ for name in others)


def _check_flags(address: str, num_processes: int, process_id: int) -> bool:
    """Return whether flags name the processes; raise UserError if some are missing."""
    given = bool(address), num_processes != 0, process_id != -1
    if not any(given):
        return False
    if not all(given):
        raise UserError(
            '--coordinator_address, --num_processes and --process_id belong together: '
            'pass all three, or none on a cluster that JAX knows.'
        )
    if num_processes < 1:
        raise UserError(f'--num_processes={num_processes} must be 1 or more.')
    if not 0 <= process_id < num_processes:
        raise UserError(
            f'--process_id={process_id} must be in 0 ... {num_processes - 1}, below '
            f'--num_processes={num_processes}.'
        )
    return True


def _meet(
    address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    with warnings.catch_warnings(), _signals_that_end():
        # On Kubernetes JAX warns where its client package is not installed.
        warnings.simplefilter('ignore')
        jax.distributed.initialize(
            address, num_processes, process_id,
            initialization_timeout=2 * _MEETING,
            heartbeat_timeout_seconds=_HEARTBEAT,
        )


@contextlib.contextmanager
def _signals_that_end() -> Iterator[None]:
    """Let signals end the process at once: Python's handlers would wait for JAX."""
    names = [signal.SIGTERM, signal.SIGINT]
    if threading.current_thread() is not threading.main_thread():
        names = []
    handlers = {name: signal.signal(name, signal.SIG_DFL) for name in names}
    try:
        yield
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)


def _still_waiting(address: str) -> None:
    where = f' at {address}' if address else ''
    print(
        f'waiting for the other processes{where}, for up to {_MEETING} seconds.',
        file=sys.stderr, flush=True,
    )


def _alone_too_long() -> None:
    print(
        f'the other processes have not come within {_MEETING} seconds: start all of '
        f'them, with the same address, which every host must reach.',
        file=sys.stderr, flush=True,
    )
    os._exit(2)


def _check_address(address: str, *, is_mine: bool) -> None:
    """Raise UserError for an address at which JAX would crash."""
    port = address.rpartition(':')[2]
    if ':' not in address or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f'--coordinator_address={address} must be HOST:PORT, the port from 1 to '
            f'65535.'
        )
    if is_mine:
        try:
            socket.create_server(('', int(port))).close()
        except OSError as error:
            raise UserError(
                f'--coordinator_address={address}: the port cannot be used: {error}.'
            ) from None


def _check_alone() -> None:
    """Raise UserError where MPI has started several processes that JAX cannot find."""
    for name in ('OMPI_COMM_WORLD_SIZE', 'PMI_SIZE'):
        if int(os.environ.get(name, '1')) > 1:
            raise UserError(
                f'{name}={os.environ[name]}, but JAX finds no other processes here: '
                f'pass --coordinator_address, --num_processes and --process_id.'
            )
