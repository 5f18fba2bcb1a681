"""What every generator and discriminator is, as the games between them see it.

A generator makes images x = G(z) in [-1, 1], a discriminator gives images logits of
being real, and a critic scores. Those that see labels take them as one more argument.
"""

from typing import Any, Protocol

import jax

__all__ = ['Discriminator', 'Generator', 'Player']


class Player(Protocol):
    """A network with parameters of its own, such as a flax.linen.Module."""

    def init(self, rng: jax.Array, /, *args: Any) -> Any:
        """Make the variables: 'params', and 'batch_stats' where it has BatchNorm."""

    def apply(self, variables: Any, /, *args: Any, **mode: Any) -> Any:
        """Compute the output; with `mutable`, the new 'batch_stats' too."""


class Generator(Player, Protocol):
    """z to an image."""

    def __call__(
        self, z: jax.Array, *, train: bool = False, axis_name: str | None = None
    ) -> jax.Array:
        """Draw images.

        Args:
            z: [B, Z].
            train: BatchNorm uses the moments of the batch, not their running averages.
            axis_name: the devices over which these moments are taken.

        Returns:
            [B, H, W, C] float32 in (-1, 1).
        """


class Discriminator(Player, Protocol):
    """An image to the logit of its being real, or to a score."""

    def __call__(
        self,
        x: jax.Array,
        *,
        dropout_rng: jax.Array | None = None,
        train: bool = False,
        axis_name: str | None = None,
    ) -> jax.Array:
        """Judge images.

        Args:
            x: [B, H, W, C] in [-1, 1], all real or all generated: BatchNorm's moments
                are of one kind.
            dropout_rng: one key, or [B] keys, one per example; None: no dropout.
            train: BatchNorm uses the moments of the batch, not their running averages;
                spectral norm improves its estimate.
            axis_name: the devices over which these moments are taken.

        Returns:
            [B] float32.
        """
