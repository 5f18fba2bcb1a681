"""Deep generative models in JAX: pure losses and samplers, runs that resume exactly.

Importing the package loads none of its modules: import what you need, for instance
`from gm_jax.losses import elbo`.
"""

__version__ = '0.1.0'
