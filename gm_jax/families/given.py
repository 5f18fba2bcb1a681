"""Images of which a part is given to a sampler: those of --given, or test images."""

import math
from typing import NamedTuple

import numpy as np

from gm_jax.data import binarize, decoding, files, image_set, readers
from gm_jax.errors import UserError
from gm_jax.families.setting import Model, Setting
from gm_jax.keys import Stream, Use, derive, fold_in_each, stream
from gm_jax.training import settings

__all__ = [
    'first_half', 'images', 'inexact', 'known_part', 'PartialImages', 'read', 'whole',
]


class PartialImages(NamedTuple):
    """Images of which a part is known.

    Attributes:
        images: [N, H, W, C] int32.
        known: [N, H, W, C] bool, true for the values to keep.
    """

    images: np.ndarray
    known: np.ndarray


def images(s: Setting) -> PartialImages | None:
    """Return the images that a sampler starts from.

    Without a task they are the images and the mask of --given or, without that flag,
    one image of which nothing is known. With a task they are whole images: those of
    --given, or some from all over the test set; None if there is neither.

    Raises:
        UserError: the file cannot be read, or its arrays do not fit the model.
    """
    if s.task is not None:
        found = _whole_images(s)
        return None if found is None else whole(s, found)
    if not s.config.given:
        shape = (1, *s.data.image_shape)
        return PartialImages(np.zeros(shape, np.int32), np.zeros(shape, bool))
    return read(
        s.config.given, s.config, s.data.image_shape, s.num_values, masked=True
    )


def inexact(model: Model, known: np.ndarray) -> str:
    """Say why samples of the unknown values are not those given all known ones.

    A sampler draws each unknown value given the values before it in the order of the
    model. That is p(unknown | known) if all known values come first.

    Args:
        model: the functions of the network.
        known: [N, H, W, C] bool, the values that are given.

    Returns:
        One sentence; empty if the samples are those of p(unknown | known).
    """
    flat = known.reshape(len(known), -1)
    rank = _rank(model, flat.shape[1])
    last = np.where(flat, rank, -1).max(axis=1)
    if (last > np.where(flat, flat.shape[1], rank).min(axis=1)).any():
        return (
            'some given values come after missing ones in the order of the model: each '
            'missing value is drawn given those before it, not given all that is known.'
        )
    partly = known.any(axis=-1) & ~known.all(axis=-1)
    if partly.any() and model.distribution.num_noise > known.shape[-1]:
        return (
            'some pixels are given in part: the component of their mixture is drawn '
            'without regard to their given colours.'
        )
    return ''


def first_half(model: Model, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Return [H, W, C] bool, true in the upper half of an image.

    If the order of the model is not raster order, it is the first half in that order,
    so that the samples of the rest are exact.
    """
    height, width, channels = image_shape
    num = height * width // 2 * channels
    if model.order is None:
        num = height // 2 * width * channels
    known = np.zeros(math.prod(image_shape), bool)
    known[slice(num) if model.order is None else model.order[:num]] = True
    return known.reshape(image_shape)


def _rank(model: Model, num_dims: int) -> np.ndarray:
    """Return the rank of every value; see `setting.Model`."""
    if model.rank is not None:
        return model.rank
    return np.arange(num_dims) if model.order is None else np.argsort(model.order)


def _whole_images(s: Setting) -> np.ndarray | None:
    config, data = s.config, s.data
    if config.given:
        return read(
            config.given, config, data.image_shape, s.num_values, masked=False
        ).images
    if 'test' in data.splits:
        test = data.splits['test']
        rows = image_set.spread(len(test), config.num_samples)
        rngs = fold_in_each(stream(config.seed, Stream.GIVEN), rows)
        x = binarize.integers(derive(rngs, Use.PIXELS), test.fetch(rows)['image'], data)
        return np.asarray(x, np.int32)
    return None


def read(
    path: str, config: settings.Config, image_shape: tuple[int, int, int],
    num_values: int, *, masked: bool,
) -> PartialImages:
    """Read the file of --given.

    Args:
        path: the file.
        config: the settings.
        image_shape: H, W, C.
        num_values: V.
        masked: whether a part of the images is given, which the file says; otherwise
            all pixels are known.

    Raises:
        UserError: the file cannot be read, or its arrays do not fit the model.
    """
    path = files.find(path, flag='given')
    if decoding.is_picture(path):
        return _read_picture(path, config, image_shape, num_values, masked)
    arrays = readers.read_npz(path, flag='given')
    if not masked and 'images' in arrays:
        arrays['mask'] = np.ones(image_shape[:2], bool)
    if not {'images', 'mask'} <= set(arrays):
        names = "arrays 'images' and 'mask'" if masked else "array 'images'"
        raise UserError(f'--given={path} must hold the {names}.')
    found = known_part(
        f'--given={path}', arrays['images'], arrays['mask'], image_shape, num_values
    )
    num = len(found.images)
    if num > config.num_samples:
        raise UserError(
            f'--given={path} has {num} images: --num_samples must be at least this '
            f'many, not {config.num_samples}.'
        )
    return found


def known_part(
    where: str, images: np.ndarray, mask: np.ndarray,
    image_shape: tuple[int, int, int], num_values: int,
) -> PartialImages:
    """Return images of which the mask is known, after a check of both.

    Args:
        where: what they are called in the error message.
        images: [N, H, W, C] integers from 0 to V - 1 where they are known.
        mask: [H, W] or [N, H, W, C], 1 or true where they are known.
        image_shape: H, W, C.
        num_values: V.

    Raises:
        UserError: they do not fit the model.
    """
    if images.ndim != 4 or images.shape[1:] != image_shape or not len(images):
        raise UserError(
            f'{where}: images are {list(images.shape)}, the model makes '
            f'[N, {", ".join(map(str, image_shape))}].'
        )
    known = _read_mask(where, mask, images.shape)
    _check_values(where, images, known, num_values)
    return PartialImages(np.where(known, images, 0).astype(np.int32), np.array(known))


def whole(s: Setting, images: np.ndarray) -> PartialImages:
    """Return whole images of which the task hides a part."""
    if s.task is None:
        raise ValueError('the model has no task')
    every = np.ones(s.data.image_shape[:2], bool)
    found, _ = known_part('given', images, every, s.data.image_shape, s.num_values)
    known = np.broadcast_to(~s.task.missing[..., None], found.shape)
    return PartialImages(found, known)


def _read_picture(
    path: str, config: settings.Config, image_shape: tuple[int, int, int],
    num_values: int, masked: bool,
) -> PartialImages:
    """Read a PNG or JPEG; if it is `masked`, its transparent pixels are not known."""
    header = decoding.read_header(path)
    if header[:2] != image_shape[:2]:
        raise UserError(
            f'--given={path} is {header.height}x{header.width}, the model makes '
            f'{image_shape[0]}x{image_shape[1]}: resize the picture.'
        )
    background = decoding.background_colour(config.background)
    image = decoding.decode_file(path, image_shape, 0, background)
    known = np.ones(image_shape[:2], bool)
    if masked:
        known = decoding.opaque_pixels(path)
        if known.all():
            raise UserError(
                f'--given={path} has no transparent pixels: make those transparent '
                f"that are not known, or give an npz with the arrays 'images' and "
                f"'mask'."
            )
    x = np.rint(image / 255 * (num_values - 1)).astype(np.int32)
    known = np.broadcast_to(known[..., None], image_shape)
    return PartialImages(np.where(known, x, 0)[None], np.array(known)[None])


def _read_mask(where: str, mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the mask as bool [N, H, W, C]."""
    if mask.shape == shape[1:3]:
        mask = np.broadcast_to(mask[None, :, :, None], shape)
    if mask.shape != shape:
        raise UserError(
            f'{where}: mask is {list(mask.shape)}; it must be '
            f'{list(shape[1:3])} or {list(shape)}.'
        )
    if mask.dtype.kind not in 'buif' or not np.isin(mask, (0, 1)).all():
        raise UserError(f'{where}: mask must consist of 0 and 1, or be boolean.')
    return mask.astype(bool)


def _check_values(
    where: str, found: np.ndarray, known: np.ndarray, num_values: int
) -> None:
    whole, values = found.dtype.kind in 'uib', found[known]
    if not whole or values.min(initial=0) < 0 or values.max(initial=0) >= num_values:
        raise UserError(
            f'{where}: images must be integers from 0 to {num_values - 1}, the '
            f'values of the model.'
        )
