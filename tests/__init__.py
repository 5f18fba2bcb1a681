"""Facts that the code must keep."""
