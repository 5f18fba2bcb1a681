"""What models that draw images by a Markov chain share: given pixels, and films."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax import plotting
from gm_jax.data import binarize
from gm_jax.data.image_set import ImageSet
from gm_jax.families import given
from gm_jax.families.given import PartialImages
from gm_jax.training import settings
from gm_jax.training.contracts import Sample
from gm_jax.training.progress import say
from gm_jax.training.settings import field
from gm_jax.training.train_state import TrainState

__all__ = ['Clamped', 'Config', 'Draw', 'film', 'Samplers', 'samplers']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(settings.Config):
    """Settings of every model whose samples are the ends of chains."""

    given: str = field(
        '', "npz of partial images to complete: 'images' integers [N, H, W, C], 'mask' "
        '[H, W] or of the shape of images, true where a pixel is given; or a PNG whose '
        'transparent pixels are not given', free=True,
    )


class Clamped(NamedTuple):
    """What a chain keeps.

    Attributes:
        x: [B, D] float32 in [0, 1], images; 0 where they are not known.
        known: [B, D] bool, true for the pixels to keep.
    """

    x: jax.Array
    known: jax.Array


# (state, rngs [B], what is kept or None) -> images [B, H, W, C] uint8
Draw = Callable[[TrainState, jax.Array, Clamped | None], jax.Array]


class Samplers(NamedTuple):
    """The sampler of a run, and how partial images are completed.

    Attributes:
        sample: draws images, which keep what --given holds.
        given: what --given holds, by the indices of images; None without that flag.
        complete: (images, mask) -> the sampler that keeps what the mask marks.
    """

    sample: Sample
    given: Callable[[np.ndarray], dict[str, np.ndarray]] | None
    complete: Callable[[np.ndarray, np.ndarray], Sample]


def samplers(config: Config, data: ImageSet, draw: Draw, caution: str) -> Samplers:
    """Return the samplers of a model.

    Args:
        config: the settings.
        data: the image set.
        draw: runs the chains.
        caution: one sentence: how near the completions are to samples given all known
            pixels.

    Raises:
        UserError: --given cannot be read, or does not fit the model.
    """
    num_values = binarize.num_values(data)

    def complete(images: np.ndarray, mask: np.ndarray) -> Sample:
        partial = given.known_part('given', images, mask, data.image_shape, num_values)
        say(f'given: {caution}')
        return keeping(partial)

    def keeping(partial: PartialImages) -> Sample:
        return functools.partial(_keep, draw, partial, num_values)

    if not config.given:
        return Samplers(lambda state, rngs, _: draw(state, rngs, None), None, complete)
    partial = given.read(
        config.given, config, data.image_shape, num_values, masked=True
    )
    say(f'--given={config.given}: {caution}')
    show = functools.partial(_show, partial, num_values)
    return Samplers(keeping(partial), show, complete)


def _keep(
    draw: Draw, partial: PartialImages, num_values: int, state: TrainState,
    rngs: jax.Array, index: jax.Array,
) -> jax.Array:
    """Draw images of which image i keeps what is known of i mod N."""
    images, known = (
        jnp.asarray(a.reshape(len(a), -1))[index % len(a)] for a in partial
    )
    return draw(state, rngs, Clamped(images / (num_values - 1), known))


def _show(
    partial: PartialImages, num_values: int, index: np.ndarray
) -> dict[str, np.ndarray]:
    """Return what is known of images before they are drawn."""
    images, known = (a[index % len(a)] for a in partial)
    return {'given': plotting.to_uint8(images, num_values=num_values), 'mask': known}


def film(
    frames: np.ndarray, *, columns: Sequence[str], xlabel: str, title: str,
    rows: Sequence[str] | None = None,
) -> np.ndarray:
    """Draw chains as rows of frames.

    Args:
        frames: [N, T, H, W, C] uint8, or floats in [0, 1].
        columns: names of the T frames.
        xlabel: what the names of the frames are.
        title: title of the picture.
        rows: names of the N chains, which start at images of the test split; None:
            the first N of them.

    Returns:
        A picture, uint8.
    """
    num, length = frames.shape[:2]
    grid = plotting.image_grid(frames.reshape(-1, *frames.shape[2:]), columns=length)
    return plotting.with_axes(
        grid, rows=rows or [str(row) for row in range(num)], columns=columns,
        xlabel=xlabel, ylabel='row of the test split', title=title,
    )
