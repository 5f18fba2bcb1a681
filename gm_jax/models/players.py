"""Interfaces of generators and discriminators, as adversarial training calls them.

A generator maps z to images x = G(z) in [-1, 1], a discriminator maps images to logits
of being real, and a critic maps images to scores. Conditional networks take labels as
one more argument.
"""

from typing import Any, Protocol

import jax

__all__ = ['Discriminator', 'Generator', 'Player']


class Player(Protocol):
    """A network with its own parameters, such as a flax.linen.Module."""

    def init(self, rng: jax.Array, /, *args: Any) -> Any:
        """Make the variables: 'params', and 'batch_stats' if there is BatchNorm."""

    def apply(self, variables: Any, /, *args: Any, **mode: Any) -> Any:
        """Compute the output; with `mutable`, the new 'batch_stats' too."""


class Generator(Player, Protocol):
    """A network from z to an image."""

    def __call__(
        self, z: jax.Array, *, train: bool = False, axis_name: str | None = None
    ) -> jax.Array:
        """Draw images.

        Args:
            z: [B, Z].
            train: BatchNorm uses the moments of the batch, not their running averages.
            axis_name: the pmap axis over which these moments are averaged.

        Returns:
            [B, H, W, C] float32 in (-1, 1).
        """


class Discriminator(Player, Protocol):
    """A network from an image to the logit of its being real, or to a score."""

    def __call__(
        self,
        x: jax.Array,
        *,
        dropout_rng: jax.Array | None = None,
        train: bool = False,
        axis_name: str | None = None,
    ) -> jax.Array:
        """Compute logits or scores of images.

        Args:
            x: [B, H, W, C] in [-1, 1], all real or all generated, so that BatchNorm
                does not mix their moments.
            dropout_rng: one key, or [B] keys, one per example; None: no dropout.
            train: BatchNorm uses the moments of the batch, not their running averages;
                spectral normalisation updates its estimate.
            axis_name: the pmap axis over which these moments are averaged.

        Returns:
            [B] float32.
        """
