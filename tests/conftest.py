"""Eight virtual devices, strict shapes, warnings as errors (see setup.cfg)."""

import gc
import hashlib
import importlib.metadata
import os
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

# Nearly all tests compile more than they compute: XLA's optimisations, its newer
# emitters of code and many small modules would double the time of the suite. Processes
# that tests start inherit the variables, since these change the last bits of a run.
if os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1') == '1':
    _flags = ['--xla_cpu_parallel_codegen_split_count=1']
    if importlib.metadata.version('jax').startswith('0.10.'):  # later: no choice
        _flags.append('--xla_cpu_use_fusion_emitters=false')
    os.environ.setdefault('XLA_FLAGS', ' '.join(_flags))

# Workers of pytest-xdist divide the cores among themselves, before JAX counts them:
# threads of one worker on the core of another slow both.
_worker = os.environ.get('PYTEST_XDIST_WORKER', '').removeprefix('gw')
if _worker and hasattr(os, 'sched_setaffinity'):
    _share = sorted(os.sched_getaffinity(0))[
        int(_worker)::int(os.environ['PYTEST_XDIST_WORKER_COUNT'])
    ]
    if _share:  # there may be fewer cores than workers
        os.sched_setaffinity(0, _share)

import jax  # noqa: E402  It reads the environment when it is imported.
import pytest  # noqa: E402
from jax._src import compiler  # noqa: E402  See `compiled_once`.

# Tracing makes objects that live as long as the programs; to look through them all for
# garbage after every few thousand took 5 % of the time.
gc.set_threshold(100_000, 50, 50)

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

_MAX_MAPS = 45_000


@pytest.fixture(autouse=True, scope='session')
def compiled_once() -> Iterator[dict[Any, Any]]:
    """Compile a program once per process, however often it is traced.

    A run that is resumed traces the same program from new functions, and JAX knows
    functions only. Its own cache of programs is on disk, and writing one has crashed.
    """
    programs: dict[Any, Any] = {}
    compile_and_load = compiler.backend_compile_and_load

    def look_up(
        backend: Any, module: Any, devices: Any, options: Any, callbacks: Any
    ) -> Any:
        def make() -> Any:
            return compile_and_load(backend, module, devices, options, callbacks)

        if callbacks:
            return make()
        text = hashlib.sha256(str(module).encode()).digest()
        key = backend, text, devices, options.SerializeAsString()
        if key not in programs:
            programs[key] = make()
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, 'backend_compile_and_load', look_up)
        yield programs


@pytest.fixture(autouse=True, scope='module')
def forgotten_programs(compiled_once: dict[Any, Any]) -> Iterator[None]:
    """Free the programs that files of tests have compiled, when they are too many.

    XLA maps the code of each into memory, some files thousands of times, and Linux
    allows a process 65,530 maps: beyond, the next compilation is a segmentation fault.
    """
    yield
    maps = pathlib.Path('/proc/self/maps')
    if not maps.exists() or maps.read_bytes().count(b'\n') > _MAX_MAPS:
        compiled_once.clear()
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def heeded_signals() -> Iterator[None]:
    """Undo what nohup and shells do to work in the background: it ignores signals."""
    numbers = signal.SIGHUP, signal.SIGINT, signal.SIGTERM
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def rng() -> jax.Array:
    """Return a key."""
    return jax.random.key(0)
