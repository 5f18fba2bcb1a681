"""Lists the experiments, prepares image sets, exports a model or compares runs."""

import sys

from gm_jax import cli, entry

entry.handle_signals()
if sys.argv[1:2] == ['prepare']:
    sys.exit(cli.prepare(sys.argv[2:], f'python -m {__package__} prepare'))
if sys.argv[1:2] == ['export']:
    entry.begin()
    sys.exit(cli.export(sys.argv[2:], f'python -m {__package__} export'))
if sys.argv[1:2] in (['compare-runs'], ['compare_runs']):
    sys.exit(cli.compare_runs(sys.argv[2:], f'python -m {__package__} compare-runs'))
if sys.argv[1:] and sys.argv[1:] not in (['-h'], ['--help']):
    sys.exit(cli.unknown(sys.argv[1], __package__))
cli.show(cli.listing(__package__, f'python -m {__package__}.'))
