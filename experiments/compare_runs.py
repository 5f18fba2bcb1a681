"""A table of runs: the settings in which they differ, and their numbers.

    python -m experiments.compare_runs DIR ...
"""

import sys

from gm_jax import cli, entry

if __name__ == '__main__':
    entry.handle_signals()
    sys.exit(cli.compare_runs(sys.argv[1:], 'compare_runs'))
