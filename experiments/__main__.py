"""Lists the experiments, or prepares image sets."""

import sys

from gm_jax import cli

if sys.argv[1:2] == ['prepare']:
    sys.exit(cli.prepare(sys.argv[2:], f'python -m {__package__} prepare'))
cli.show(cli.listing(__package__, f'python -m {__package__}.'))
