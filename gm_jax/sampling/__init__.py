"""Pure samplers and latent-space tools: they take functions, never models."""

from gm_jax._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, (
    'autoregressive',
    'conditional',
    'distributions',
    'gibbs',
    'latent',
    'multiscale',
    'walkback',
))
