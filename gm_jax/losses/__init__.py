"""Pure losses: arrays in, arrays out, in nats per example; no model, no optimizer."""

from gm_jax._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, (
    'adversarial',
    'dequantization',
    'elbo',
    'likelihoods',
    'reconstruction',
))
