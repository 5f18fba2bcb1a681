"""How the processes of a run end: as agreed, or soon after one of them has died.

Without this module a process may wait in a collective operation with a dead one: on the
CPU only the neighbours of a dead process notice, and JAX aborts all others only after
the heartbeats stop. So each process keeps a connection to process 0. A connection that
closes without a goodbye means that its process has died; process 0 passes that on.
"""

import os
import socket
import sys
import threading
import time
import traceback

import jax
import numpy as np

from gm_jax.training.processes import barrier, from_primary, is_primary, several

__all__ = ['fail', 'leave', 'part', 'start']

# Seconds that a process which has lost another one has for reporting its own error.
_LAST_WORDS = 3
_GOODBYE = b'.'  # this process ends as agreed
_NEWS = b'!'  # another process has died, or this one is about to end


class _Links:
    """Sockets between process 0 and every other process, and what is known of them."""

    open: list[socket.socket] = []
    ended: list[socket.socket] = []  # those that the other side has closed
    process = 0
    leaving = False  # as agreed: a connection that ends from now on is not news
    news = threading.Lock()  # held by the thread that reports a death
    exiting = threading.Lock()  # held by the thread that ends this process


def start() -> None:
    """Connect to process 0, or as process 0 to all others, and watch."""
    # JAX has no public way to ask which address it found.
    from jax._src.distributed import global_state

    host = (global_state.coordinator_address or '').rpartition(':')[0].strip('[]')
    server = _serve() if is_primary() else None
    port = int(from_primary(np.array(server.getsockname()[1] if server else 0)))
    password = from_primary(np.frombuffer(os.urandom(16), np.int32)).tobytes()
    if server:
        while len(_Links.open) < jax.process_count() - 1:
            link = server.accept()[0]
            if _sends(link, password):
                _Links.open.append(link)
            else:
                link.close()  # not a process of this run
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


def part(name: str) -> None:
    """Wait for the others and tell them that this process ends as agreed."""
    if not several():
        return
    barrier(name)
    _Links.leaving = True
    for link in _Links.open:
        _send(link, _GOODBYE)


def fail() -> None:
    """End one of several processes because of the exception that is being handled.

    If another process has died, which makes collective operations fail, the sentence
    about it comes first; otherwise there is a traceback. This function does not return:
    at an orderly end JAX would wait for the others, who may be waiting for this one.
    """
    time.sleep(2 * _LAST_WORDS)
    traceback.print_exc()
    leave(1)


def leave(status: int) -> int:
    """Return the exit status, but exit at once if one of several processes failed."""
    if status and several():
        _exit(status)
    return status


def _serve() -> socket.socket:
    """Listen at a free port, for IPv4 and, if available, IPv6."""
    both = socket.has_dualstack_ipv6()
    return socket.create_server(
        ('', 0), family=socket.AF_INET6 if both else socket.AF_INET,
        backlog=jax.process_count(), dualstack_ipv6=both,
    )


def _sends(link: socket.socket, password: bytes) -> bool:
    """Return whether the other side sends the password within 10 seconds."""
    link.settimeout(10)
    try:
        with link.makefile('rb', buffering=0) as file:
            received = file.read(len(password))
    except OSError:
        return False
    link.settimeout(None)
    return received == password


def _listen(link: socket.socket) -> None:
    """Wait until the other side ends; if it has died, end this process too."""
    message = _receive(link)
    if message == _GOODBYE:
        _receive(link)
    _Links.ended.append(link)
    if message == _GOODBYE or _Links.leaving:
        return
    if not _Links.news.acquire(blocking=False):
        return
    if _Links.process == 0:
        _pass_on_news()
    # Without process 0 JAX aborts this one at once.
    if _Links.process == 0 or message == _NEWS:
        time.sleep(_LAST_WORDS)
    if not _Links.leaving:
        print(
            f'process {_Links.process}: another process of this run has ended: the '
            f'same command, for all of them, resumes from the last checkpoint.',
            file=sys.stderr, flush=True,
        )
        _exit(1)


def _receive(link: socket.socket) -> bytes:
    """Wait for a byte; return no byte if the other side has ended."""
    try:
        return link.recv(1)
    except OSError:
        return b''


def _send(link: socket.socket, message: bytes) -> None:
    try:
        link.sendall(message)
    except OSError:
        pass  # the other side has gone already


def _pass_on_news() -> None:
    for link in _Links.open:
        _send(link, _NEWS)
        try:
            link.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def _exit(status: int) -> None:
    """Exit at once; process 0 after the others, whom JAX would abort without it."""
    _Links.leaving = True
    if not _Links.exiting.acquire(blocking=False):
        threading.Event().wait()  # the other thread ends the process
    sys.stdout.flush()
    sys.stderr.flush()
    if _Links.process == 0:
        _pass_on_news()
        deadline = time.monotonic() + 3 * _LAST_WORDS
        while len(_Links.ended) < len(_Links.open) and time.monotonic() < deadline:
            time.sleep(0.05)
    os._exit(status)
