"""A small convolutional classifier; its features serve to compare samples with images.

    logits = Classifier(num_classes=10).apply(variables, x)
    features = Classifier(num_classes=10).apply(variables, x, method='features')
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers import stacks
from gm_jax.layers.dropout import Dropout

__all__ = ['Classifier']


class Classifier(nn.Module):
    """Strided ReLU convolutions with BatchNorm, a ReLU layer, a softmax layer."""

    num_classes: int  # L
    maps: Sequence[int] = (32, 64)
    num_features: int = 128  # F
    dropout: float = 0.5  # rate for the features at the input of the softmax layer
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the layers."""
        self.convolutions = stacks.ConvStack(
            self.maps, activation=nn.relu, batch_norm=True, dtype=self.dtype
        )
        self.dense = nn.Dense(self.num_features, dtype=self.dtype)
        self.drop = Dropout(self.dropout)
        self.head = nn.Dense(self.num_classes, dtype=self.dtype)

    def features(
        self, x: jax.Array, *, train: bool = False, axis_name: str | None = None
    ) -> jax.Array:
        """Return the input of the softmax layer, [N, F] float32, non-negative.

        Args:
            x: [N, H, W, C] in [0, 1].
            train: BatchNorm uses the moments of the batch, not their running averages.
            axis_name: the pmap axis over which these moments are averaged.
        """
        h = self.convolutions(x, train=train, axis_name=axis_name)
        h = self.dense(h.reshape(h.shape[0], -1))
        return nn.relu(h.astype(jnp.float32))

    def __call__(
        self,
        x: jax.Array,
        *,
        dropout_rng: jax.Array | None = None,
        train: bool = False,
        axis_name: str | None = None,
    ) -> jax.Array:
        """Return the logits of the classes.

        Args:
            x: [N, H, W, C] in [0, 1].
            dropout_rng: one key, or [N] keys, one per example; None: no dropout.
            train: BatchNorm uses the moments of the batch, not their running averages.
            axis_name: the pmap axis over which these moments are averaged.

        Returns:
            [N, L] float32.
        """
        h = self.features(x, train=train, axis_name=axis_name)
        h = self.drop(h, rng=dropout_rng)
        return self.head(h).astype(jnp.float32)
