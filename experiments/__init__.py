"""One short module per model: run it with `python -m experiments.NAME --help`."""
