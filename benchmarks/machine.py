"""What the benchmarks say of the machine."""

import os
import pathlib
import platform

import jax


def cpu_name() -> str:
    """Return the CPU's name and the number of cores that this process may use."""
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    names = [x.split(':')[1].strip() for x in lines if x.startswith('model name')]
    return f'{names[0] if names else platform.machine()}, {os.cpu_count()} cores'


def device_name() -> str:
    """Return the name of what JAX computes on: an accelerator's, or the CPU's."""
    device = jax.devices()[0]
    return cpu_name() if device.platform == 'cpu' else device.device_kind
