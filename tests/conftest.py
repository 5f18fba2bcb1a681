"""Eight virtual devices, strict shapes, warnings as errors (see setup.cfg)."""

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture
def rng() -> jax.Array:
    """A key."""
    return jax.random.key(0)
