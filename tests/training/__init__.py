"""Runs, and what they are made of."""
