"""How many virtual devices a CPU is divided into, settled before JAX makes them.

The autoregressive models other than MADE, the PixelVAE, RealNVP, the DCGAN and the
convolutional WGAN train faster if each core is a device with a part of the batch than
if all cores share the work of every operation: 1.2 to 2.2 times on two cores. Dense
networks other than NADE, whose steps are short, train more slowly.
"""

import dataclasses
import os

import jax

from gm_jax.data import files
from gm_jax.errors import UserError
from gm_jax.training.settings import Config, ConfigT

__all__ = ['most', 'settle', 'warning']

# The gain was measured on two cores. Every device has a copy of the parameters.
_MOST = 8
_SETTING = 'jax_num_cpu_devices'
_LEFT_TO_JAX = -1


def settle(config: ConfigT, config_path: str) -> ConfigT:
    """Tell JAX the number of devices of a CPU, and return the config that names it.

    A resumed run keeps the number that it began with, also on another machine, since
    the last bits of its sums depend on it. A number that the environment names, or an
    earlier run of this process, stays, and is the one of the config; so does that of a
    program that uses JAX already. Nothing is changed if several processes share a run.

    Args:
        config: the settings.
        config_path: config.json of the work directory, which may be missing.
    """
    if jax.distributed.is_initialized():
        return config
    if 'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', ''):
        return _present(config)
    if (named := jax.config.values[_SETTING]) != _LEFT_TO_JAX:
        return dataclasses.replace(config, cpu_devices=named)
    num = config.cpu_devices or _begun_with(config_path)
    if not num:
        num = most(config.batch_size, config.smallest_share, _cores())
        num = num if config.gains_from_cpu_devices else 1
    try:
        jax.config.update(_SETTING, num)
    except RuntimeError:  # inside a program that uses JAX already
        return _present(config)
    return dataclasses.replace(config, cpu_devices=num)


def warning(config: Config, settled: Config) -> str:
    """Return a sentence on a number that cannot be had; '' where there is no need.

    Args:
        config: the settings as they were given.
        settled: the same with the number of devices that JAX has.
    """
    asked, found = config.cpu_devices, settled.cpu_devices
    if asked and jax.distributed.is_initialized():
        return (
            f'--cpu_devices={asked} is for a run of one process: set '
            f'JAX_NUM_CPU_DEVICES={asked} for each of several.'
        )
    if asked in (0, found):
        return ''
    return f'--cpu_devices={asked} cannot be had: JAX has {found} devices here already.'


def most(batch_size: int, share: int, cores: int) -> int:
    """Return the largest number of devices, at most `cores`, that divides a batch.

    Args:
        batch_size: examples of a batch.
        share: examples that must stay together on a device.
        cores: how many cores there are.
    """
    return max(
        n for n in range(1, max(min(cores, _MOST), 1) + 1)
        if n == 1 or batch_size % (n * share) == 0
    )


def _present(config: ConfigT) -> ConfigT:
    """Return the config with the number of devices that JAX has made of the CPU."""
    try:
        num = len(jax.local_devices(backend='cpu'))
    except (AssertionError, RuntimeError):  # JAX_PLATFORMS leaves the CPU out
        return config
    return dataclasses.replace(config, cpu_devices=num)


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _begun_with(config_path: str) -> int:
    """Return the number in the config of a run that has begun; 0 if there is none."""
    try:
        found = files.read_object(config_path, 'a config').get('cpu_devices')
    except UserError:  # missing, or damaged, which is reported when it is checked
        return 0
    return found if isinstance(found, int) and 0 < found <= 1024 else 0
