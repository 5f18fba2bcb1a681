"""What the experiments of one family share."""
