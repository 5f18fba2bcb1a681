"""PNG and JPEG files: upright, on a background, of 8 bits."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gm_jax.data import decoding
from gm_jax.errors import UserError

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6
PER_PIXEL = {GREY: 1, COLOUR: 3, PALETTE: 1, GREY_ALPHA: 2, COLOUR_ALPHA: 4}


def png(rows, depth, colour_type, **chunks) -> bytes:
    """Write a PNG by its definition: rows of bytes, and chunks before them."""
    width = 8 * len(rows[0]) // (depth * PER_PIXEL[colour_type])
    head = struct.pack('>IIBBBBB', width, len(rows), depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b''.join(b'\0' + bytes(row) for row in rows))
    parts = {'IHDR': head, **chunks, 'IDAT': pixels, 'IEND': b''}
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(part)) + name.encode() + part
        + struct.pack('>I', zlib.crc32(name.encode() + part))
        for name, part in parts.items()
    )


def written(picture: Image.Image, kind: str = 'png', **kwargs) -> bytes:
    """Return a file of the picture."""
    file = io.BytesIO()
    picture.save(file, kind, **kwargs)
    return file.getvalue()


@pytest.fixture
def read(tmp_path):
    """Return the header of a file and its pixels."""

    def read(data, background='white', num_channels=0):
        (tmp_path / 'file').write_bytes(data)
        header = decoding.read_header(str(tmp_path / 'file'))
        shape = *header[:2], num_channels or header.num_channels
        return header, decoding.decode(
            data, shape, 0, 'file', decoding.background_colour(background)
        )

    return read


@pytest.mark.parametrize('kind', ['png', 'jpeg'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_upright(read, images, kind, orientation):
    """Catch a photograph on its side, and the size of one that still lies there."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = written(Image.fromarray(images[0]), kind, exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(data)))
    header, found = read(data)
    assert header[:2] == ((6, 5) if orientation < 5 else (5, 6))
    # By the definition of the tag: which sides the first row and column are.
    np.testing.assert_array_equal(found, {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1],
        5: stored.swapaxes(0, 1), 6: stored[::-1].swapaxes(0, 1),
        7: stored[::-1, ::-1].swapaxes(0, 1), 8: stored[:, ::-1].swapaxes(0, 1),
    }[orientation])


@pytest.mark.parametrize('exif', [
    b'MM\0*\0\0', b'hello', b'II*\0\xff', b'II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01'
    b'\0\0\0x\0\0\0\0\0\0\0',
])
def test_damaged_orientation_is_none(read, images, exif):
    """Catch a traceback out of the reader of EXIF, which viewers would ignore."""
    _, found = read(written(Image.fromarray(images[0]), exif=b'Exif\0\0' + exif))
    np.testing.assert_array_equal(found, images[0])


@pytest.mark.parametrize('background,colour', [
    ('white', (255, 255, 255)), ('black', (0, 0, 0)), ('#2040fA', (32, 64, 250)),
])
@pytest.mark.parametrize('mode', ['RGBA', 'LA'])
def test_alpha_channel(read, images, mode, background, colour):
    """Catch the colour of what nobody sees: most often black, or noise."""
    alpha = np.arange(0, 255, 8.5).round().astype(np.uint8).reshape(6, 5, 1)
    x = images[0] if mode == 'RGBA' else images[0, :, :, :1]
    header, found = read(written(Image.fromarray(np.dstack([x, alpha]))), background)
    assert header == (6, 5, x.shape[2], True)
    if mode == 'LA':
        colour = np.dot(colour, (0.299, 0.587, 0.114))
    share = alpha / 255
    expected = share * x + (1 - share) * np.array(colour)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1)


@pytest.mark.parametrize('depth,row', [
    (1, [0b01000000]), (2, [0b00011011]), (4, [0x05, 0xAF]), (8, [0, 85, 170, 255]),
])
@pytest.mark.parametrize('num_channels', [1, 3])
def test_transparent_grey(read, depth, row, num_channels):
    """Catch a transparent grey that is compared with greys of another scale."""
    header, opaque = read(png([row], depth, GREY), num_channels=num_channels)
    assert not header.transparent
    most = 2**depth - 1
    colour = max(most // 3, 1)  # that of one pixel
    data = png([row], depth, GREY, tRNS=struct.pack('>H', colour))
    header, found = read(data, '#000102', num_channels)
    assert header.transparent and header.num_channels == 1
    gone = opaque[..., 0] == colour * 255 // most
    assert gone.sum() == 1
    behind = [1] if num_channels == 1 else [0, 1, 2]
    np.testing.assert_array_equal(found[gone], [behind])
    np.testing.assert_array_equal(found[~gone], opaque[~gone])


def test_transparent_colours(read):
    """Catch a transparent colour, or entry of a palette, that is drawn."""
    pixels = [[10, 20, 30, 40, 50, 60]]
    colour = struct.pack('>3H', 10, 20, 30)
    header, found = read(png(pixels, 8, COLOUR, tRNS=colour))
    assert header == (1, 2, 3, True)
    assert found.tolist() == [[[255, 255, 255], [40, 50, 60]]]
    palette = bytes([10, 20, 30, 40, 50, 60, 0, 0, 0])
    data = png([[1, 0, 2]], 8, PALETTE, PLTE=palette, tRNS=bytes([0, 255]))
    header, found = read(data, 'black')
    assert header == (1, 3, 3, True)
    assert found.tolist() == [[[40, 50, 60], [0, 0, 0], [0, 0, 0]]]


@pytest.mark.parametrize('last,num_channels', [(60, 1), (61, 3)])
def test_palettes_of_greys_are_grey(read, last, num_channels):
    """Catch a grey set that is trained on in colour, three times as slowly."""
    palette = bytes([10, 10, 10, 60, 60, last])
    header, found = read(png([[1, 0, 1]], 8, PALETTE, PLTE=palette))
    assert header == (1, 3, num_channels, False)
    assert found[0, 1].tolist() == [10] * num_channels
    assert found[0, 0].tolist() == [60, 60, last][:num_channels]


@pytest.mark.parametrize('colour_type', [GREY, COLOUR, GREY_ALPHA, COLOUR_ALPHA])
def test_16_bits_are_refused(read, colour_type):
    """Catch 16 bits that are cut to 8 in silence, as Pillow does, where TFDS is too."""
    data = png([bytes(2 * PER_PIXEL[colour_type])], 16, colour_type)
    with pytest.raises(UserError, match='file has 16 bits per value: convert it to 8'):
        read(data)
    with pytest.raises(UserError, match='shard 3 has 16 bits per value'):
        decoding.decode(data, (1, 1, 3), 0, 'shard 3')


@pytest.mark.parametrize('text', [
    '', 'pink', 'White', '#fff', '#12345g', '123456', '#1234567', '#12345\n',
])
def test_what_is_no_colour(text):
    """Catch a colour that is misread."""
    with pytest.raises(UserError, match='is not a colour: give white, black or #rr'):
        decoding.background_colour(text)
