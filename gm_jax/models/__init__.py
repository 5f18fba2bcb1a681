"""One file per paper: linen modules that return distribution parameters."""
