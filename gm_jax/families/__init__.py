"""Code that the experiments of one family share, from the model to the experiment."""

from gm_jax._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, (
    'adversarial',
    'attributes',
    'autoregressive',
    'boltzmann',
    'chains',
    'classifier',
    'codes',
    'conditional',
    'density',
    'flow',
    'generation',
    'given',
    'orders',
    'pixel_cnn',
    'players',
    'probes',
    'scores',
    'setting',
    'sides',
    'stochastic',
    'stochastic_scores',
    'variational',
))
