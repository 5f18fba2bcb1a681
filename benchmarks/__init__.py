"""Speed, side by side with PyTorch: each module writes rows of JSON to results/."""
