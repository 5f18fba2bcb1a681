"""Eight virtual devices, strict shapes, warnings as errors (see setup.cfg)."""

import gc
from collections.abc import Iterator

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(autouse=True, scope='module')
def forgotten_programs() -> Iterator[None]:
    """Free the programs that a file of tests has compiled.

    XLA maps the code of each into memory, some files thousands of times, and Linux
    allows a process 65,530 maps: beyond, the next compilation is a segmentation fault.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def rng() -> jax.Array:
    """Return a key."""
    return jax.random.key(0)
