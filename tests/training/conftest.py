"""Programs that several tests run are compiled once."""

from collections.abc import Iterator

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache as cache_lib

_SETTINGS = {
    # Only programs that take a while: to write one has been seen to crash JAX 0.10.2.
    'jax_persistent_cache_min_compile_time_secs': 0.5,
    'jax_persistent_cache_min_entry_size_bytes': -1,
}


@pytest.fixture(autouse=True, scope='session')
def compilation_cache(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Keeps compiled programs; yields what lets a subprocess read them, not write."""
    # One a process: JAX does not write its entries atomically.
    directory = str(tmp_path_factory.mktemp('compiled'))
    before = {name: getattr(jax.config, name) for name in _SETTINGS}
    cache_lib.set_cache_dir(directory)
    for name, value in _SETTINGS.items():
        jax.config.update(name, value)
    yield {
        'JAX_COMPILATION_CACHE_DIR': directory,
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '1000000',
    }
    for name, value in before.items():
        jax.config.update(name, value)
    cache_lib.reset_cache()
