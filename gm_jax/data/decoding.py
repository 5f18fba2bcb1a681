"""Decoding of PNG and JPEG files into arrays of one shape."""

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from gm_jax.errors import UserError

__all__ = ['decode', 'decode_file', 'Header', 'read_header']

_FORMATS = ('PNG', 'JPEG')
_GREY = ('1', 'L', 'LA')
_COLOUR = ('RGB', 'RGBA', 'P', 'CMYK', 'YCbCr')
# What Pillow raises for a damaged file: the last two come from its PNG reader.
_DAMAGED = (
    OSError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning,
    SyntaxError, EOFError,
)


class Header(NamedTuple):
    """The size of an image, as read from the header of its file.

    Attributes:
        height: the height in pixels.
        width: the width in pixels.
        num_channels: 1 for grey, 3 for colour.
    """

    height: int
    width: int
    num_channels: int


def read_header(path: str) -> Header:
    """Read the size of an image without decoding it.

    Args:
        path: a PNG or JPEG file.

    Raises:
        UserError: the file is not a PNG or JPEG, is huge, or has more than 8 bits per
            value.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                mode, (width, height) = image.mode, image.size
    except UnidentifiedImageError:
        raise UserError(f'{path} is not a PNG or JPEG: move it elsewhere.') from None
    except _DAMAGED as error:
        raise UserError(f'{path} cannot be read as PNG or JPEG: {error}.') from None
    if mode not in _GREY + _COLOUR:
        raise UserError(f'{path} is of mode {mode}: convert it to 8-bit grey or RGB.')
    return Header(height, width, 1 if mode in _GREY else 3)


def decode(
    data: bytes, shape: tuple[int, int, int], image_size: int, where: str
) -> np.ndarray:
    """Decode one image; crop it to a square and resize it if `image_size` is given.

    The largest centred square is resized to N x N by an antialiased bicubic filter.
    This equals resizing the shorter side to N and then cropping the centre, without
    rounding in between.

    Args:
        data: the contents of the file.
        shape: (H, W, C) of the result; C = 1 converts to grey, 3 to RGB.
        image_size: N, or 0 to keep the size.
        where: the file's name, for the error message.

    Returns:
        [H, W, C] uint8.

    Raises:
        UserError: the file is damaged or has another size.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as file:
            mode = 'L' if shape[2] == 1 else 'RGB'
            # A conversion to the same mode would copy.
            image: Image.Image = file if file.mode == mode else file.convert(mode)
            image.load()
    except UnidentifiedImageError:
        raise UserError(f'{where} is not a PNG or JPEG.') from None
    except _DAMAGED as error:
        raise UserError(f'{where} is damaged: {error}. Replace it.') from None
    if image_size and image.size != (image_size, image_size):
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        image = image.resize(
            (image_size, image_size), Image.Resampling.BICUBIC,
            box=(left, top, left + side, top + side),
        )
    array = np.asarray(image).reshape(image.height, image.width, shape[2])
    if array.shape != shape:
        raise UserError(
            f'{where} is {image.height}x{image.width}, not {shape[0]}x{shape[1]}: pass '
            f'--image_size to resize all images to one size.'
        )
    return array


def decode_file(
    path: str, shape: tuple[int, int, int], image_size: int
) -> np.ndarray:
    """Read and decode one file; see `decode`."""
    try:
        with open(path, 'rb') as file:
            data = file.read()
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}.') from None
    return decode(data, shape, image_size, path)
