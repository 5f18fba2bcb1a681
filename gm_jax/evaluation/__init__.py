"""Test-set likelihood, importance sampling and other measures of a trained model."""
