"""The modules that are run."""
