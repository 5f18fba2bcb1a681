"""Several processes as one run: who they are, what they agree on, how they end.

Every process runs the same loop on the same numbers, each with its own part of every
batch; only the first writes files. Processes are found by JAX where it knows the
cluster (a TPU pod, Slurm, Open MPI, Kubernetes), and by flags elsewhere. Of one
process all of this does nothing.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gm_jax.errors import UserError

# Seconds in which the processes of a job must have come.
_MEETING = 300
# Seconds without a sign of life after which JAX gives a process up, should its host
# vanish without closing its connections.
_HEARTBEAT = 40
# Seconds that a process which has lost another one has to say what it knows itself.
_LAST_WORDS = 3
_GOODBYE = b'.'  # this process ends as agreed
_NEWS = b'!'  # one has ended that you do not see, or this one is about to


def initialize(
    coordinator_address: str = '', num_processes: int = 0, process_id: int = -1
) -> None:
    """Joins the processes of a job; to be called before anything else of JAX.

    Args:
        coordinator_address: HOST:PORT where process 0 listens; '': JAX finds the
            others where it knows the cluster, or else there is this process alone.
        num_processes: how many there are.
        process_id: which of them this is.

    Raises:
        UserError: the arguments do not fit together, or the others are not there.
    """
    given = bool(coordinator_address), num_processes != 0, process_id != -1
    if any(given) and not all(given):
        raise UserError(
            '--coordinator_address, --num_processes and --process_id belong together: '
            'pass all three, or on a cluster that JAX knows none.'
        )
    if all(given) and not 0 <= process_id < num_processes:
        raise UserError(
            f'--process_id={process_id} must be in 0 ... {num_processes - 1}, below '
            f'--num_processes={num_processes}.'
        )
    if num_processes == 1 or jax.distributed.is_initialized():
        return
    if all(given):
        _check_address(coordinator_address, is_mine=process_id == 0)
        who = coordinator_address, num_processes, process_id
    elif os.environ.get('SLURM_NTASKS') == '1':
        return  # of a cluster one process: all GPUs of the node are its own
    else:
        who = None, None, None
    # Its handler would take SIGTERM away from the loop's.
    jax.config.update('jax_enable_preemption_service', False)
    # JAX would abort where the others do not come in its own time.
    patience = threading.Timer(_MEETING, _alone_too_long)
    patience.daemon = True
    patience.start()
    try:
        with warnings.catch_warnings(), _signals_that_end():
            # On Kubernetes JAX warns where its client package is not installed.
            warnings.simplefilter('ignore')
            jax.distributed.initialize(
                *who, initialization_timeout=2 * _MEETING,
                heartbeat_timeout_seconds=_HEARTBEAT,
            )
        if jax.process_count() > 1:
            _watch()
    except ValueError:
        if any(given):
            raise
        _check_alone()  # no cluster
    except (OSError, jax.errors.JaxRuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'the processes did not find each other: {reason}.') from None
    except RuntimeError as error:
        if not any(given) and 'must be called before' in str(error):
            return  # inside a program that uses JAX already
        reason = str(error).splitlines()[0]
        raise UserError(f'the processes could not be started: {reason}.') from None
    finally:
        patience.cancel()


@contextlib.contextmanager
def _signals_that_end() -> Iterator[None]:
    """Lets signals end the process at once: Python's handlers would wait for JAX."""
    names = signal.SIGTERM, signal.SIGINT
    if threading.current_thread() is not threading.main_thread():
        names = ()
    handlers = {name: signal.signal(name, signal.SIG_DFL) for name in names}
    try:
        yield
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)


def _alone_too_long() -> None:
    print(
        f'the other processes have not come within {_MEETING} seconds: start all of '
        f'them, with the same address, which every host must reach.',
        file=sys.stderr, flush=True,
    )
    os._exit(2)


def _check_address(address: str, *, is_mine: bool) -> None:
    """Raises UserError for an address at which JAX would crash."""
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
    """Raises UserError where MPI has started several processes that JAX cannot find."""
    for name in ('OMPI_COMM_WORLD_SIZE', 'PMI_SIZE'):
        if int(os.environ.get(name, '1')) > 1:
            raise UserError(
                f'{name}={os.environ[name]}, but JAX finds no other processes here: '
                f'pass --coordinator_address, --num_processes and --process_id.'
            )


def several() -> bool:
    """Returns whether this process is one of several, without starting JAX."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_primary() -> bool:
    """Returns whether this is the process that writes."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(tree: Any) -> Any:
    """Concatenates the parts that each process has of arrays [N / P, ...]: [N, ...]."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.process_allgather(tree, tiled=True)


def from_primary(array: np.ndarray) -> np.ndarray:
    """Returns the array of process 0, of a shape and type that all processes have."""
    if jax.process_count() == 1:
        return array
    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def all_agree(mine: bool) -> bool:
    """Returns whether all processes say so; each waits for the others."""
    return bool(np.all(gather(np.array([mine]))))


class _Links:
    """The sockets by which processes see each other end: of each with process 0."""

    open: list[socket.socket] = []
    ended: list[socket.socket] = []  # those whose other side has gone
    process = 0
    leaving = False  # as agreed: then an end is no news
    news = threading.Lock()  # taken by who tells it
    exiting = threading.Lock()  # taken by who ends this process


def _watch() -> None:
    """Ends this process with a sentence soon after another one has died.

    Otherwise it would wait in a collective operation: on the CPU only the neighbours of
    a dead process notice, and all others are aborted by JAX after the heartbeats stop.
    """
    # JAX has no other way to tell which address it found.
    from jax._src.distributed import global_state

    host = global_state.coordinator_address.rpartition(':')[0].strip('[]')
    server = _serve() if is_primary() else None
    port = int(from_primary(np.int32(server.getsockname()[1] if server else 0)))
    password = from_primary(np.frombuffer(os.urandom(16), np.int32)).tobytes()
    if server:
        while len(_Links.open) < jax.process_count() - 1:
            link = server.accept()[0]
            if _says(link, password):  # else it is none of ours
                _Links.open.append(link)
            else:
                link.close()
        server.close()
    else:
        link = socket.create_connection((host, port), timeout=60)
        link.settimeout(None)
        link.sendall(password)
        _Links.open.append(link)
    _Links.process = jax.process_index()
    for link in _Links.open:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        threading.Thread(target=_listen, args=(link,), daemon=True).start()


def _serve() -> socket.socket:
    """Listens at a free port, for IPv4 and, where there is one, IPv6."""
    both = socket.has_dualstack_ipv6()
    return socket.create_server(
        ('', 0), family=socket.AF_INET6 if both else socket.AF_INET,
        backlog=jax.process_count(), dualstack_ipv6=both,
    )


def _says(link: socket.socket, password: bytes) -> bool:
    """Returns whether the other side sends the password within seconds."""
    link.settimeout(10)
    try:
        with link.makefile('rb', buffering=0) as file:
            said = file.read(len(password))
    except OSError:
        return False
    link.settimeout(None)
    return said == password


def _listen(link: socket.socket) -> None:
    said = _receive(link)
    if said == _GOODBYE:
        _receive(link)
    _Links.ended.append(link)
    if said == _GOODBYE or _Links.leaving or not _Links.news.acquire(blocking=False):
        return
    if _Links.process == 0:
        _pass_on_news()
    # Without process 0 JAX aborts this one at once.
    if _Links.process == 0 or said == _NEWS:
        time.sleep(_LAST_WORDS)
    if not _Links.leaving:
        print(
            f'process {_Links.process}: another process of this run has ended: the '
            f'same command, for all of them, goes on from the last checkpoint.',
            file=sys.stderr, flush=True,
        )
        _exit(1)


def _pass_on_news() -> None:
    for link in _Links.open:
        _ignoring_errors(link.sendall, _NEWS)
        _ignoring_errors(link.shutdown, socket.SHUT_WR)


def _receive(link: socket.socket) -> bytes:
    """Waits for a byte; returns none where the other side has ended."""
    try:
        return link.recv(1)
    except OSError:
        return b''


def _ignoring_errors(act: Callable, *args: Any) -> None:
    try:
        act(*args)
    except OSError:
        pass  # the other side has gone already


def part(name: str) -> None:
    """Waits for the others and tells them that this process ends as agreed."""
    if not several():
        return
    barrier(name)
    _Links.leaving = True
    for link in _Links.open:
        _ignoring_errors(link.sendall, _GOODBYE)


def fail() -> None:
    """Ends a process of several by the exception that is being handled.

    Where another one has died, which makes collective operations fail, the sentence on
    that comes first; otherwise there is a traceback. It does not return, since at an
    orderly end JAX would wait for the others, who may be waiting for this one.
    """
    time.sleep(2 * _LAST_WORDS)
    traceback.print_exc()
    leave(1)


def leave(status: int) -> int:
    """Returns the exit status; of a failure with several processes exits at once."""
    if status and several():
        _exit(status)
    return status


def _exit(status: int) -> None:
    """Exits at once; process 0 after the others, whom JAX would abort without it."""
    _Links.leaving = True
    if not _Links.exiting.acquire(blocking=False):
        threading.Event().wait()  # the other thread is at it
    sys.stdout.flush()
    sys.stderr.flush()
    if _Links.process == 0:
        _pass_on_news()
        deadline = time.monotonic() + 3 * _LAST_WORDS
        while len(_Links.ended) < len(_Links.open) and time.monotonic() < deadline:
            time.sleep(0.05)
    os._exit(status)
