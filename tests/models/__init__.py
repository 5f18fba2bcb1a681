"""Models against their formulas."""
