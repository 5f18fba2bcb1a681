"""Benchmarks, some of them against PyTorch, that write rows of JSON to results/."""
