"""Multi-scale generation: a small image first, then the pixels between its pixels.

With x^(0) every 2^L-th pixel of an image, x^(l) every 2^(L-l)-th and x^(L) all of them,

    p(x) = p(x^(0)) prod_l p(x^(l) | x^(l-1))

is exact, since x^(l-1) is a part of x^(l). The first factor is a Gated PixelCNN. The
others come in two kinds:

    raster    van den Oord et al. 2016, Pixel Recurrent Neural Networks, sec. 3.6,
              https://arxiv.org/abs/1601.06759: the pixels in raster order, by a network
              conditioned on x^(l-1)
    parallel  Reed et al. 2017, Parallel Multiscale Autoregressive Density Estimation,
              sec. 3, https://arxiv.org/abs/1703.03664: three groups, to the right of,
              below, and diagonally below the pixels of x^(l-1). The pixels of a group
              are independent given x^(l-1) and the groups before: O(log N) evaluations

    model = MultiscalePixelCNN((28, 28, 1), num_values=2, num_stages=2, parallel=True)
    logits = model.apply(variables, x)  # x integers [B, H, W, C]
"""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gm_jax.layers.causal import Head, Here
from gm_jax.layers.observer import Observer
from gm_jax.layers.pixels import encode, join, quarters
from gm_jax.models.gated_pixel_cnn import GatedPixelCNN

__all__ = ['MultiscalePixelCNN', 'ParallelStage', 'RasterStage']


class RasterStage(nn.Module):
    """The factor p(x^(l) | x^(l-1)) in raster order."""

    image_shape: tuple[int, int, int]  # H, W, C of x^(l)
    num_values: int  # V
    features: int
    num_layers: int  # layers of the network, and blocks of the observer
    head: int
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the network, and the observer that encodes x^(l-1) for it."""
        self.observer = Observer(self.features, self.num_layers, dtype=self.dtype)
        self.network = GatedPixelCNN(
            self.image_shape, self.num_values, features=self.features,
            num_layers=self.num_layers, kernel_sizes=(3,), head=self.head,
            dtype=self.dtype,
        )

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """Compute the logits of the `quarters` of x^(l) [B, H, W, C] except x^(l-1)."""
        return quarters(self.network(x, self.observe(x[:, ::2, ::2])))[1:]

    def observe(self, small: jax.Array) -> jax.Array:
        """Map x^(l-1), [B, H / 2, W / 2, C], to a map [B, H, W, F] for the network."""
        x = encode(small, self.num_values)
        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)  # 1 marks x^(l-1)
        return self.observer(join([x, *[jnp.zeros_like(x)] * 3]))


class ParallelStage(nn.Module):
    """The factor p(x^(l) | x^(l-1)) in three groups."""

    image_shape: tuple[int, int, int]  # H, W, C of x^(l)
    num_values: int  # V
    features: int
    num_layers: int  # blocks of the network of each group
    head: int
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make a network for each group."""
        channels, dtype = self.image_shape[2], self.dtype
        self.observers = [
            Observer(self.features, self.num_layers, dtype=dtype) for _ in range(3)
        ]
        if channels > 1:  # each colour of a pixel depends on those before it
            self.colours = [
                Here(self.features, channels, strict=True, use_bias=False, dtype=dtype)
                for _ in range(3)
            ]
        self.to_logits = [
            Head(self.head, channels, self.num_values, dtype=dtype) for _ in range(3)
        ]

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """Compute the logits of the `quarters` of x^(l) [B, H, W, C] except x^(l-1)."""
        parts = quarters(x)
        return [
            self.logits(n, self.observe(n, jnp.concatenate(parts[:n + 1], -1)), part)
            for n, part in enumerate(parts[1:])
        ]

    def observe(self, group: int, known: jax.Array) -> jax.Array:
        """Encode x^(l-1) and the groups before, [B, H / 2, W / 2, (group + 1) C]."""
        return self.observers[group](encode(known, self.num_values))

    def logits(self, group: int, y: jax.Array, x: jax.Array) -> jax.Array:
        """Map y from `observe` and the pixels x of the group to their logits.

        A colour depends only on the colours of x before it.
        """
        if self.image_shape[2] > 1:
            y = y + self.colours[group](encode(x, self.num_values))
        return self.to_logits[group](y)


class MultiscalePixelCNN(nn.Module):
    """All factors, from integers to logits."""

    image_shape: tuple[int, int, int]  # H, W, C
    num_values: int  # V
    num_stages: int = 2  # L
    parallel: bool = True
    features: int = 24
    num_layers: int = 4
    head: int = 64
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the networks, one for each size of image."""
        def of_size(part: int) -> tuple[int, int, int]:
            height, width, channels = self.image_shape
            return height // part, width // part, channels

        size = dict(num_values=self.num_values, features=self.features,
                    num_layers=self.num_layers, head=self.head, dtype=self.dtype)
        self.base = GatedPixelCNN(
            of_size(2 ** self.num_stages), kernel_sizes=(3,), **size
        )
        stage = ParallelStage if self.parallel else RasterStage
        self.stages = [
            stage(of_size(2 ** n), **size) for n in reversed(range(self.num_stages))
        ]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the logits of every pixel given those before it.

        Args:
            x: [B, H, W, C] integers in [0, V), H and W multiples of 2^L.

        Returns:
            Logits [B, H, W, C] of a one (V = 2), or [B, H, W, C, V].
        """
        chex.assert_shape(x, (None, *self.image_shape))
        part = 2 ** self.num_stages
        logits = self.base(x[:, ::part, ::part])
        for stage in self.stages:
            part //= 2
            logits = join([logits, *stage(x[:, ::part, ::part])])
        return logits

    def rank(self) -> np.ndarray:
        """Return [D]: for each flat position a number that rises in the order.

        The values of one number are independent given those of lower numbers.
        """
        height, width, channels = self.image_shape
        part = 2 ** self.num_stages
        shape = (1, height // part, width // part, channels)
        rank = jnp.arange(math.prod(shape)).reshape(shape)
        for _ in range(self.num_stages):
            first = rank.max() + 1
            if self.parallel:
                colours = first + jnp.arange(3 * channels).reshape(3, channels)
                new = [jnp.broadcast_to(ranks, rank.shape) for ranks in colours]
            else:
                twice = (1, 2 * rank.shape[1], 2 * rank.shape[2], channels)
                new = quarters(first + jnp.arange(math.prod(twice)).reshape(twice))[1:]
            rank = join([rank, *new])
        return np.asarray(rank).ravel()
