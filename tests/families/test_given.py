"""Pictures of which a part is given to a sampler."""

import numpy as np
import pytest
from PIL import Image

from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.families import given
from gm_jax.families.setting import Config, Setting, Task


@pytest.fixture
def read(tmp_path):
    """Save a picture of 2x3 and read it for a model of such images."""

    def read(pixels, num_channels=1, num_values=17, task=None, name='a.png', **kwargs):
        Image.fromarray(np.array(pixels, np.uint8)).save(tmp_path / name, **kwargs)
        data = ImageSet(
            name='tiny', image_shape=(2, 3, num_channels), num_values=num_values,
            num_classes=0, splits={},
        )
        config = Config(given=str(tmp_path / name), background='black')
        others = dict.fromkeys(('model', 'num_dims', 'generate', 'sweep'))
        return given.images(Setting(
            config=config, data=data, task=task, num_values=num_values, **others
        ))

    return read


LEVELS = np.array([[0, 16, 255], [128, 240, 90]])
ALPHA = np.array([[255, 255, 0], [254, 255, 255]])


def test_transparent_pixels_are_unknown(read):
    """Catch grey levels taken for values of a model, and edges that are half erased."""
    images, known = read(np.dstack([LEVELS, ALPHA]))
    np.testing.assert_array_equal(known[0, ..., 0], ALPHA == 255)
    np.testing.assert_array_equal(images[0, ..., 0], [[0, 1, 0], [0, 15, 6]])
    assert images.dtype == np.int32 and known.dtype == bool
    colour = np.dstack([LEVELS, LEVELS // 2, LEVELS // 3, ALPHA])
    images, known = read(colour, 3, 256)
    assert (known == (ALPHA == 255)[..., None]).all()
    np.testing.assert_array_equal(images[0], np.where(known[0], colour[..., :3], 0))


def test_a_picture_on_its_side(read):
    """Catch a mask that is not turned with its picture."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.dstack([LEVELS, ALPHA]).swapaxes(0, 1)[::-1]
    images, known = read(stored, num_values=256, exif=exif)
    expected = np.where(ALPHA == 255, LEVELS, 0)
    np.testing.assert_array_equal(known[0, ..., 0], ALPHA == 255)
    np.testing.assert_array_equal(images[0, ..., 0], expected)


def test_a_task_takes_whole_pictures(read):
    """Catch a transparent part of a whole picture that is left to chance."""
    missing = np.array([[True, False, True], [False, False, True]])
    task = Task('upscale', lambda x: x, lambda x: x, missing)
    images, known = read(np.dstack([LEVELS, ALPHA]), num_values=256, task=task)
    np.testing.assert_array_equal(known[0, ..., 0], ~missing)
    np.testing.assert_allclose(
        images[0, ..., 0], LEVELS * ALPHA / 255, rtol=0, atol=1
    )


@pytest.mark.parametrize('pixels,name,sentence', [
    (LEVELS, 'a.png', 'a.png has no transparent pixels: make those transparent that'),
    (LEVELS, 'a.jpg', 'a.jpg has no transparent pixels'),
    (np.dstack([LEVELS, 0 * ALPHA + 255]), 'a.png', 'has no transparent pixels'),
    (LEVELS.T, 'a.png', 'a.png is 3x2, the model makes 2x3: resize the picture'),
])
def test_pictures_that_do_not_fit(read, pixels, name, sentence):
    """Catch a picture of which all is known, so that nothing is drawn."""
    with pytest.raises(UserError, match=sentence):
        read(pixels, name=name)


@pytest.mark.parametrize('shape', [(), (2, 3), (1, 2, 3)])
def test_arrays_that_are_no_images(tmp_path, shape):
    """Catch a traceback for an array of another rank."""
    path = tmp_path / 'given.npz'
    np.savez(path, images=np.zeros(shape, int), mask=np.zeros((2, 3), bool))
    with pytest.raises(UserError, match=r'images are \[.*the model makes \[N, 2, 3, 1'):
        given.read(str(path), Config(), (2, 3, 1), 2, masked=True)


@pytest.mark.parametrize('dtype', [bool, np.uint8, '>i8'])
def test_arrays_of_bits(tmp_path, dtype):
    """Catch booleans that are good for --dataset=npz:FILE but not for --given."""
    bits, known = np.arange(6).reshape(1, 2, 3, 1) % 2, np.array([[1, 1, 1], [1, 0, 0]])
    path = tmp_path / 'bits.npz'
    np.savez(path, images=bits.astype(dtype), mask=known.astype(bool))
    data = ImageSet(
        name='tiny', image_shape=(2, 3, 1), num_values=2, num_classes=0, splits={},
    )
    others = dict.fromkeys(('model', 'num_dims', 'generate', 'sweep', 'task'))
    found = given.images(Setting(
        config=Config(given=str(path)), data=data, num_values=2, **others
    ))
    np.testing.assert_array_equal(found.images[0, ..., 0], bits[0, ..., 0] * known)
    assert found.images.dtype == np.int32
