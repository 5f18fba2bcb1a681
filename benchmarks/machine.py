"""The names of processors that the benchmarks report."""

import os
import pathlib
import platform

import jax


def cpu_name() -> str:
    """Return the CPU's name and the number of cores that this process may use."""
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    names = [x.split(':')[1].strip() for x in lines if x.startswith('model name')]
    name = names[0] if names else platform.machine()
    return f'{name}, {len(os.sched_getaffinity(0))} cores'


def device_name() -> str:
    """Return the name of the device that JAX computes on, an accelerator or the CPU."""
    device = jax.devices()[0]
    return cpu_name() if device.platform == 'cpu' else device.device_kind
