"""What tells one state of this package's code from another."""

import functools
import hashlib
import importlib.metadata
import pathlib

import gm_jax

__all__ = ['fingerprint']


@functools.cache
def fingerprint() -> str:
    """Return the versions of this package and of JAX, and a digest of the code.

    A number may depend on any of these, so processes compare them before they start.
    """
    root = pathlib.Path(gm_jax.__file__).parent
    digest = hashlib.sha256()
    # In a clone the experiments lie beside the package, in a wheel inside.
    for folder in (root, root.parent / 'experiments'):
        for path in sorted(folder.rglob('*.py')):
            digest.update(path.name.encode() + path.read_bytes())
    jax = importlib.metadata.version('jax')
    return f'{gm_jax.__version__}+{digest.hexdigest()[:12]}, jax {jax}'
