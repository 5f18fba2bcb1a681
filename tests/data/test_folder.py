"""Folders of pictures."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gm_jax.data import sources
from gm_jax.data.image_set import StreamedExamples
from gm_jax.errors import UserError


def load(tmp_path, **kwargs):
    """Load the folder that `save_image` fills."""
    return sources.load(f'images:{tmp_path}', **kwargs)


def every_image(data) -> list[bytes]:
    """All images of all splits, in no order."""
    return sorted(
        image.tobytes() for split in data.splits.values() for image in split.images
    )


def test_splits_and_labels_by_folder(tmp_path, save_image, images):
    """Catch labels numbered per split, or splits taken for labels."""
    for i in range(6):
        save_image(f'train/{"cab"[i % 3]}/{i}.png', images[i])
    save_image('test/b/deep/er/0.png', images[6])
    save_image('test/c/0.PNG', images[7])
    data = load(tmp_path)
    assert (data.image_shape, data.num_values, data.num_classes) == ((6, 5, 3), 256, 3)
    assert data.class_names == ('a', 'b', 'c')
    train, test = data.splits['train'], data.splits['test']
    np.testing.assert_array_equal(train.images, images[[1, 4, 2, 5, 0, 3]])
    np.testing.assert_array_equal(train.labels, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(test.images, images[[6, 7]])
    np.testing.assert_array_equal(test.labels, [1, 2])


def test_fixed_tenth_tests(tmp_path, save_image, images):
    """Catch a split that changes or loses images."""
    for i, image in enumerate(images):
        save_image(f'{i}.png', image)
    first, again = load(tmp_path), load(tmp_path)
    assert {name: len(split) for name, split in first.splits.items()} == {
        'train': 36, 'test': 4
    }
    assert first.num_classes == 0 and (first.splits['test'].labels == -1).all()
    assert every_image(first) == sorted(image.tobytes() for image in images)
    for name in ('train', 'test'):
        np.testing.assert_array_equal(
            first.splits[name].images, again.splits[name].images
        )


def test_a_tenth_of_each_label_tests(tmp_path, save_image, images):
    """Catch a draw that ignores labels, and a label of which only the test is."""
    for i, image in enumerate(images):
        save_image(f'{"b" if i % 4 else "a"}/{i}.png', image)
    save_image('c/only.png', images[0])
    splits = load(tmp_path).splits
    assert np.bincount(splits['train'].labels).tolist() == [9, 27, 1]
    assert np.bincount(splits['test'].labels).tolist() == [1, 3]


@pytest.mark.parametrize('names,sizes', [
    (('TRAIN', 'Test', 'Val'), {'train': 2, 'test': 2, 'validation': 2}),
    (('train', 'valid'), {'train': 2, 'test': 2}),
    (('train', 'validation', 'test'), {'train': 2, 'test': 2, 'validation': 2}),
    (('Train',), {'train': 1, 'test': 1}),
    (('training', 'testing', 'dev'), {'train': 2, 'test': 2, 'validation': 2}),
])
def test_folders_that_are_splits(tmp_path, save_image, images, names, sizes):
    """Catch a split that is taken for a label, or that nothing reads."""
    for name in names:
        save_image(f'{name}/0.png', images[0])
        save_image(f'{name}/1.png', images[1])
    (tmp_path / 'LICENSE').write_text('free')
    data = load(tmp_path)
    assert {name: len(split) for name, split in data.splits.items()} == sizes
    assert data.num_classes == 0


@pytest.mark.parametrize('files,sentence', [
    (['test/a'], 'test is there but not its counterpart: have a folder train'),
    (['val/a', 'test/a'], 'there but not its counterpart'),
    (['train/a', 'val/a', 'valid/a'], 'val and .*valid are both the validation split'),
    (['train/a', 'Train/a'], 'Train and .*train are both the train split'),
    (['train/a', 'bus/a'], 'train is a split by its name, but .*bus beside it'),
    (['train/a', 'test/a', 'b'], 'test is a split by its name, but .*b.png beside it'),
    (['train/', 'test/a'], 'train holds no images'),
    (['train/a', 'test/'], 'test holds no images'),
    (['train/a', 'test/b/a'], 'train/a.png has no label, and others have, by'),
    (['train/a/a', 'test/a'], 'test/a.png has no label, and others have, by'),
    (['train/a', 'test/a', 'b.webp'], '.*b.webp.png beside it'),
    (['seg_train/a/0', 'seg_test/a/0'], 'would be labels, and look like splits: call'),
    (['training_set/a', 'test_set/a', 'val_set/a'], 'and look like splits: call'),
    (['train2017/a', 'val2017/a'], 'and look like splits: call'),
    (['trainA/a', 'testA/a', 'trainB/a', 'testB/a'], 'and look like splits: call'),
    (['archive/Train/a/0', 'archive/Test/a/0'], 'splits: pass --dataset=.*archive'),
])
def test_splits_that_are_wrong(tmp_path, save_image, images, files, sentence):
    """Catch a folder that is left out in silence."""
    for name in files:
        if name.endswith('/'):
            (tmp_path / name).mkdir()
        else:
            save_image(f'{name}.png', images[0])
    with pytest.raises(UserError, match=sentence):
        load(tmp_path)


@pytest.mark.parametrize('names', [
    ('bullet_train/0', 'freight_train/0'), ('test_negative/0', 'test_positive/0'),
    ('contest/0', 'retrain/0'), ('a/train/0', 'a/bus/0'),
])
def test_labels_that_are_no_splits(tmp_path, save_image, images, names):
    """Catch classes that are refused for their names."""
    for name in names:
        for i in range(3):
            save_image(f'{name}{i}.png', images[i])
    assert load(tmp_path).num_classes == len({name.split('/')[0] for name in names})


def test_streamed_is_the_same(tmp_path, save_image, images):
    """Catch an order or labels that differ where a set does not fit."""
    for i, image in enumerate(images):
        save_image(f'{"ab"[i % 2]}/{i}.png', image)
    whole = load(tmp_path).splits['train']
    streamed = load(tmp_path, memory_limit=0).splits['train']
    assert isinstance(streamed, StreamedExamples)
    order = np.array([5, 0, 35, 5])
    batch = streamed.fetch(order)
    np.testing.assert_array_equal(batch['image'], whole.images[order])
    np.testing.assert_array_equal(batch['label'], whole.labels[order])


@pytest.mark.parametrize('mode,num_channels', [
    ('1', 1), ('L', 1), ('LA', 1), ('RGB', 3), ('RGBA', 3), ('P', 3),
])
def test_modes(tmp_path, images, mode, num_channels):
    """Catch a palette's indices taken for grey values, and an alpha channel."""
    for i in range(2):
        picture = Image.fromarray(images[i]).convert(mode)
        picture.save(tmp_path / f'{i}.png')
    data = load(tmp_path)
    assert data.image_shape == (6, 5, num_channels)
    expected = [
        np.asarray(picture.convert('L' if num_channels == 1 else 'RGB')).tobytes()
        for picture in (Image.open(tmp_path / f'{i}.png') for i in range(2))
    ]
    assert every_image(data) == sorted(expected)


def test_grey_among_colour_becomes_colour(tmp_path, save_image, images):
    """Catch channels taken from the first file or the last."""
    for name in 'ac':
        save_image(f'{name}.png', images[0, :, :, 0])
    save_image('b.png', images[1])
    data = load(tmp_path)
    assert data.image_shape == (6, 5, 3)
    grey = np.repeat(images[0, :, :, :1], 3, axis=2)
    assert every_image(data) == sorted([
        grey.tobytes(), grey.tobytes(), images[1].tobytes()
    ])


def test_transparent_among_opaque(tmp_path, save_image, images, capsys):
    """Catch a background that stays grey among colours, or changes without a word."""
    save_image('test/0.png', np.dstack([images[0, :, :, 0], 0 * images[0, :, :, 0]]))
    save_image('train/0.png', images[1])
    save_image('train/1.png', np.dstack([images[2], images[2, :, :, :1] // 255]))
    data = load(tmp_path, background='#010203')
    expected = np.full((6, 5, 3), (1, 2, 3))
    np.testing.assert_array_equal(data.splits['test'].images[0], expected)
    np.testing.assert_array_equal(data.splits['train'].images[0], images[1])
    assert capsys.readouterr().err == (
        '2 of 3 images are transparent, or can be: composited on #010203 '
        '(--background).\n'
    )


def test_jpeg(tmp_path, save_image):
    """Catch JPEG files left out; a flat picture survives the compression."""
    for name in ('a.jpg', 'b.jpeg', 'c.JPG'):
        save_image(name, np.full((8, 16, 3), 100, np.uint8), format='JPEG')
    data = load(tmp_path)
    assert data.image_shape == (8, 16, 3)
    assert set(b''.join(every_image(data))) <= {99, 100, 101}


@pytest.mark.parametrize('shape', [(12, 20), (20, 12)])
def test_resized_to_the_centre(tmp_path, save_image, shape):
    """Catch a squeezed picture, a corner for the centre, and height for width."""
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for name in 'ab':
        save_image(f'{name}.png', noise)
    data = load(tmp_path, image_size=6)
    assert data.image_shape == (6, 6, 3)
    # By the definition: the shorter side to 6, then the centre.
    size = (10, 6) if shape[0] == 12 else (6, 10)
    whole = np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))
    centre = whole[:, 2:8] if shape[0] == 12 else whole[2:8]
    image = data.splits['train'].images[0].astype(int)
    np.testing.assert_allclose(image, centre, rtol=0, atol=1)


def test_resizing_is_antialiased(tmp_path, save_image):
    """Catch nearest-pixel resizing, which turns fine stripes black or white."""
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    for name in 'ab':
        save_image(f'{name}.png', stripes)
    inner = load(tmp_path, image_size=8).splits['train'].images[0, :, 1:-1]
    assert (np.abs(inner.astype(int) - 127.5) < 10).all()


def test_hidden_files_are_left_out(tmp_path, save_image, images):
    """Catch a .DS_Store that stops a run."""
    for i in range(2):
        save_image(f'{i}.png', images[i])
    (tmp_path / '.DS_Store').write_bytes(b'no image')
    save_image('.thumbs/0.png', images[0])
    assert len(every_image(load(tmp_path))) == 2


def test_links_are_followed_once(tmp_path, save_image, images):
    """Catch links that go round in circles, and images that are read many times."""
    for i in range(4):
        save_image(f'set/{"cd"[i % 2]}/{i}.png', images[i])
    save_image('elsewhere/4.png', images[4])
    root = tmp_path / 'set'
    (root / 'c' / 'up').symlink_to(root)
    (root / 'c' / 'self').symlink_to('../c')
    (root / 'a').symlink_to('d')  # the directory itself gives the label
    (root / 'c' / 'other').symlink_to(root / 'd')
    (root / 'e').symlink_to(tmp_path / 'elsewhere')
    (root / 'e' / 'back').symlink_to(root / 'e')
    (root / 'c' / 'link.png').symlink_to(tmp_path / 'elsewhere' / '4.png')
    data = load(root)
    assert data.class_names == ('c', 'd', 'e')
    assert every_image(data) == sorted(
        images[i].tobytes() for i in (0, 1, 2, 3, 4, 4)
    )


def test_a_link_to_the_training_images_is_no_test(tmp_path, save_image, images):
    """Catch a test split that is the training split."""
    save_image('train/0.png', images[0])
    (tmp_path / 'test').symlink_to('train')
    with pytest.raises(UserError, match='holds no images, or only folders that were'):
        load(tmp_path)


def put(tmp_path, content):
    """Write a file bad.png of these bytes."""
    (tmp_path / 'bad.png').write_bytes(content)


# A PNG whose head claims 20,000 x 10,000 pixels.
_HEAD = b'IHDR' + struct.pack('>IIBBBBB', 20_000, 10_000, 8, 0, 0, 0, 0)
HUGE = b''.join([
    b'\x89PNG\r\n\x1a\n', struct.pack('>I', 13), _HEAD,
    struct.pack('>I', zlib.crc32(_HEAD)), bytes(4), b'IDAT',
    struct.pack('>I', zlib.crc32(b'IDAT')),
])


def cut(tmp_path):
    """Cut bad.png in the middle of its pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / 'bad.png')
    put(tmp_path, (tmp_path / 'bad.png').read_bytes()[:90])


@pytest.mark.parametrize('change,sentence', [
    (lambda path: put(path, b'hello'),
     'bad.png is not a PNG or JPEG: move it elsewhere'),
    (lambda path: put(path, b''), 'bad.png is not a PNG or JPEG: move it elsewhere'),
    (lambda path: (path / 'notes.txt').write_text('hello'), 'notes.txt is not a PNG'),
    (cut, 'bad.png is damaged: .*Replace it'),
    (lambda path: Image.new('RGB', (9, 5)).save(path / 'z.png'),
     'z.png is 5x9 but .*/0.png is 6x5: pass --image_size'),
    (lambda path: Image.new('I;16', (5, 6)).save(path / 'z.png'),
     'z.png has 16 bits per value: convert it to 8-bit grey or RGB'),
    (lambda path: (path / 'z.png').write_bytes(HUGE), 'z.png cannot be read as PNG or'),
    (lambda path: os.mkfifo(path / 'z.png'), 'z.png is a pipe, a device or a link to'),
    (lambda path: (path / 'z.png').symlink_to('/dev/zero'), 'z.png is a pipe, a dev'),
    (lambda path: (path / 'z.png').symlink_to('z.png'), 'z.png is .*a link to nothing'),
    (lambda path: ((path / 'a').mkdir(), Image.new('L', (5, 6)).save(path / 'a/z.png')),
     '0.png has no label, and others have, by the sub-folders'),
    (lambda path: [(path / f'{i}.png').unlink() for i in range(3)], 'holds no images'),
    (lambda path: [(path / f'{i}.png').unlink() for i in range(2)],
     'has 1 image.s.: at least 2 are needed'),
])
def test_what_is_wrong_is_named(tmp_path, save_image, images, change, sentence):
    """Catch a traceback, or a file that is skipped in silence."""
    for i in range(3):
        save_image(f'{i}.png', images[i])
    change(tmp_path)
    with pytest.raises(UserError, match=sentence):
        load(tmp_path)


def test_test_labels_must_be_trained_on(tmp_path, save_image, images):
    """Catch labels of train and test that don't match."""
    for name in ('train/a', 'train/b', 'test/a', 'test/d'):
        save_image(f'{name}/0.png', images[0])
    with pytest.raises(UserError, match='test images of the label d but no training'):
        load(tmp_path)


def test_no_directory(tmp_path):
    """Catch a traceback for a directory that is not there."""
    with pytest.raises(UserError, match='There is no directory .*nowhere'):
        load(tmp_path / 'nowhere')


def test_damage_after_loading_is_named(tmp_path, save_image, images):
    """Catch a streamed image that is gone, or was changed, during a run."""
    for i in range(3):
        save_image(f'{i}.png', images[i])
    data = load(tmp_path, memory_limit=0)
    for i in range(3):
        save_image(f'{i}.png', images[i, :4])
    with pytest.raises(UserError, match='png is 4x5, not 6x5'):
        data.splits['train'].fetch(np.arange(2))
    for i in range(3):
        (tmp_path / f'{i}.png').unlink()
    with pytest.raises(UserError, match='png cannot be read: No such file'):
        data.splits['train'].fetch(np.arange(2))
