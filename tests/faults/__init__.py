"""Trials too long for the suite."""
