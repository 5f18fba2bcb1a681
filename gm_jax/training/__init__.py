"""Everything between a pure loss and a finished run: config, state, loop, checkpoints."""
