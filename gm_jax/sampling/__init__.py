"""Pure samplers and latent-space tools: they take functions, never models."""
