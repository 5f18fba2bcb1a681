"""Decoding of PNG and JPEG files into arrays of one shape.

Images are turned upright as their EXIF orientation says, which in a PNG must stand
before the pixels. What is transparent is composited on a background.
"""

import io
import re
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from gm_jax.errors import UserError

__all__ = [
    'background_colour', 'Colour', 'decode', 'decode_file', 'Header', 'is_picture',
    'opaque_pixels', 'read_header',
]

# What Pillow says of damaged metadata, from threads too; the pixels are right.
warnings.filterwarnings('ignore', category=UserWarning, module='PIL')

_FORMATS = ('PNG', 'JPEG')
_GREY = ('1', 'L', 'LA')
_COLOUR = ('RGB', 'RGBA', 'P', 'CMYK', 'YCbCr')
# What Pillow raises for a damaged file: the last two come from its PNG reader.
_DAMAGED = (
    OSError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning,
    SyntaxError, EOFError,
)
_BACKGROUNDS = {'white': (255, 255, 255), 'black': (0, 0, 0)}
_WHITE = _BACKGROUNDS['white']
_ORIENTATION = 0x0112  # the EXIF tag
# How an image of each orientation becomes upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_ON_ITS_SIDE = [_TURNS[orientation] for orientation in (5, 6, 7, 8)]
_HEAD = 25  # bytes of a PNG up to its bits per value

# Red, green and blue, each from 0 to 255.
Colour = tuple[int, int, int]


def background_colour(text: str) -> Colour:
    """Read the value of --background.

    Args:
        text: white, black or #rrggbb, in hexadecimal.

    Raises:
        UserError: it is none of these.
    """
    if re.fullmatch('#[0-9a-fA-F]{6}', text):
        red, green, blue = bytes.fromhex(text[1:])
        return red, green, blue
    if text not in _BACKGROUNDS:
        raise UserError(
            f'--background={text} is not a colour: give white, black or #rrggbb, such '
            f'as #8080ff.'
        )
    return _BACKGROUNDS[text]


class Header(NamedTuple):
    """The size of an image, as read from the header of its file.

    Attributes:
        height: the height in pixels, of the upright image.
        width: its width.
        num_channels: 1 for grey, palettes of greys among them, 3 for colour.
        transparent: whether it has an alpha channel or a transparent colour.
    """

    height: int
    width: int
    num_channels: int
    transparent: bool


def is_picture(path: str) -> bool:
    """Return whether a file begins as a PNG or JPEG does, damaged or not."""
    with open(path, 'rb') as file:
        return file.read(4).startswith((b'\x89PNG', b'\xff\xd8\xff'))


def read_header(path: str) -> Header:
    """Read the size of an image without decoding it.

    Args:
        path: a PNG or JPEG file.

    Raises:
        UserError: the file is not a PNG or JPEG, is huge, or has more than 8 bits per
            value.
    """
    try:
        with warnings.catch_warnings(), open(path, 'rb') as file:
            warnings.simplefilter('ignore')  # such as of an APNG that is none
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            depth = _bit_depth(file.read(_HEAD))
            with Image.open(file, formats=_FORMATS) as image:
                mode, (width, height) = image.mode, image.size
                turn = _turn(image)
                grey = mode in _GREY or (mode == 'P' and _has_grey_palette(image))
                transparent = _is_transparent(image)
    except UnidentifiedImageError:
        raise UserError(f'{path} is not a PNG or JPEG: move it elsewhere.') from None
    except _DAMAGED as error:
        raise UserError(f'{path} cannot be read as PNG or JPEG: {error}.') from None
    _check_depth(path, depth)
    if mode not in _GREY + _COLOUR:
        raise UserError(f'{path} is of mode {mode}: convert it to 8-bit grey or RGB.')
    if turn in _ON_ITS_SIDE:
        height, width = width, height
    return Header(height, width, 1 if grey else 3, transparent)


def _bit_depth(head: bytes) -> int:
    """Return the bits per value of a PNG, by its header; 8 for another file."""
    return head[24] if len(head) == _HEAD and head[12:16] == b'IHDR' else 8


def _check_depth(where: str, depth: int) -> None:
    # Pillow would cut most of these to 8 bits in silence.
    if depth > 8:
        raise UserError(
            f'{where} has {depth} bits per value: convert it to 8-bit grey or RGB.'
        )


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return what makes the image upright, by what stands before its pixels."""
    try:
        # Not the method of PNG files, which would decode the pixels first.
        return _TURNS.get(Image.Image.getexif(image).get(_ORIENTATION, 1))
    # Damaged EXIF raises errors of many types; viewers ignore it.
    except Exception:
        return None


def _has_grey_palette(image: Image.Image) -> bool:
    _, colours = image.palette.getdata() if image.palette else ('', b'')
    return bool(colours) and colours[::3] == colours[1::3] == colours[2::3]


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ('LA', 'RGBA') or 'transparency' in image.info


def decode(
    data: bytes, shape: tuple[int, int, int], image_size: int, where: str,
    background: Colour = _WHITE,
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
        background: the colour behind what is transparent; its luminance if C = 1.

    Returns:
        [H, W, C] uint8.

    Raises:
        UserError: the file is damaged, has another size or more than 8 bits per value.
    """
    depth = _bit_depth(data[:_HEAD])
    _check_depth(where, depth)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as file:
            turn = _turn(file)
            image = _opaque(file, 'L' if shape[2] == 1 else 'RGB', depth, background)
            if turn is not None:
                image = image.transpose(turn)
    except UnidentifiedImageError:
        raise UserError(f'{where} is not a PNG or JPEG.') from None
    except _DAMAGED as error:
        raise UserError(
            f'{where} is damaged: {error}. Replace it; with it the set is another one, '
            f'for which a run that has begun must begin again.'
        ) from None
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


def _opaque(
    image: Image.Image, mode: str, depth: int, background: Colour
) -> Image.Image:
    """Convert to L or RGB; what is transparent shows the background."""
    if _is_transparent(image):
        behind = Image.new('RGB', image.size, background)
        if mode == 'L':
            behind = behind.convert('L')
        image = Image.alpha_composite(behind.convert('RGBA'), _with_alpha(image, depth))
    # A conversion to the same mode would copy.
    image = image if image.mode == mode else image.convert(mode)
    image.load()
    return image


def _with_alpha(image: Image.Image, depth: int) -> Image.Image:
    colour = image.info.get('transparency')
    if image.mode == 'L' and isinstance(colour, int):
        # Pillow scales the greys of less than 8 bits, but not the transparent one.
        image.info['transparency'] = colour * (255 // (2**depth - 1))
    return image.convert('RGBA')


def opaque_pixels(path: str) -> np.ndarray:
    """Return which pixels of an image that `decode_file` reads are wholly opaque.

    Args:
        path: a PNG or JPEG file.

    Returns:
        [H, W] bool.
    """
    with open(path, 'rb') as file:
        depth = _bit_depth(file.read(_HEAD))
        with Image.open(file, formats=_FORMATS) as image:
            turn, alpha = _turn(image), _with_alpha(image, depth).getchannel('A')
    return np.asarray(alpha if turn is None else alpha.transpose(turn)) == 255


def decode_file(
    path: str, shape: tuple[int, int, int], image_size: int,
    background: Colour = _WHITE,
) -> np.ndarray:
    """Read and decode one file; see `decode`."""
    try:
        with open(path, 'rb') as file:
            data = file.read()
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}.') from None
    return decode(data, shape, image_size, path, background)
