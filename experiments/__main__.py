"""Lists the experiments, prepares image sets, or exports a model."""

import sys

from gm_jax import cli

if sys.argv[1:2] == ['prepare']:
    sys.exit(cli.prepare(sys.argv[2:], f'python -m {__package__} prepare'))
if sys.argv[1:2] == ['export']:
    sys.exit(cli.export(sys.argv[2:], f'python -m {__package__} export'))
cli.show(cli.listing(__package__, f'python -m {__package__}.'))
