"""Deep generative models in JAX: pure losses and samplers, runs that resume exactly.

Importing the package loads none of its modules; each is loaded when it is first used:

    import gm_jax
    bound = gm_jax.losses.elbo.elbo(log_px, kl)
"""

from gm_jax._lazy import attach

__version__ = '0.1.0'

__getattr__, __dir__, __all__ = attach(__name__, functions={'load': 'loading'}, names=(
    'cli',
    'data',
    'entry',
    'errors',
    'evaluation',
    'families',
    'functions',
    'html',
    'keys',
    'layers',
    'loading',
    'losses',
    'memory',
    'models',
    'plotting',
    'sampling',
    'survey',
    'trained',
    'training',
))
