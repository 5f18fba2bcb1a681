"""Lists the experiments."""

from gm_jax import cli

print(cli.listing(__package__, f'python -m {__package__}.'))
