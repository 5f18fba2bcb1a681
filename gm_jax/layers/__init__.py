"""Flax modules and functions that two or more models share."""

from gm_jax._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, (
    'activations',
    'causal',
    'coupling',
    'downsample',
    'dropout',
    'levels',
    'lstm',
    'observer',
    'pixels',
    'products',
    'shifted',
    'spectral',
    'stacks',
    'transforms',
    'upsample',
    'weight_norm',
))
