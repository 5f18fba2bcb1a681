"""What lies between a pure loss and a finished run."""
