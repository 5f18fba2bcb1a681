"""Digits, MNIST's format and NumPy archives."""

import gzip
import json
import os
import struct

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from gm_jax.data import image_set, sources
from gm_jax.data.splits import hold_out
from gm_jax.errors import UserError

IDX = {
    'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
    'test': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
}


def to_idx(array: np.ndarray) -> bytes:
    """Write the format by its definition: two zeros, type 8, rank, sizes, values."""
    head = struct.pack(f'>BBBB{array.ndim}I', 0, 0, 8, array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_idx(path, images, labels, zipped=False):
    """Write 30 + 10 images in the four files."""
    parts = (slice(30), slice(30, 40))
    for (image_name, label_name), part in zip(IDX.values(), parts):
        for name, array in ((image_name, images), (label_name, labels)):
            content = to_idx(array[part])
            if zipped:
                content, name = gzip.compress(content), f'{name}.gz'
            (path / name).write_bytes(content)


@pytest.fixture
def grey(images) -> np.ndarray:
    """[40, 6, 5] uint8."""
    return images[..., 0]


def test_digits_are_scikit_learn_s():
    """Catch values scaled or cut, labels that left their images, and an overlap."""
    data = sources.load('digits')
    assert (data.image_shape, data.num_values, data.num_classes) == ((8, 8, 1), 17, 10)
    assert [len(data.splits[name]) for name in ('train', 'test')] == [1500, 297]
    ours = [
        (image.tobytes(), label) for split in data.splits.values()
        for image, label in zip(split.images, split.labels)
    ]
    bunch = datasets.load_digits()
    theirs = zip(bunch.images.astype(np.uint8), bunch.target)
    assert sorted(ours) == sorted((image.tobytes(), label) for image, label in theirs)
    assert len(set(data.splits['test'].labels)) == 10


def test_digits_are_split_for_good():
    """Catch another shuffle, which would make numbers of two versions differ."""
    assert sources.load('digits').splits['test'].labels[:12].tolist() == [
        7, 9, 3, 8, 8, 3, 1, 6, 4, 5, 4, 3
    ]


@pytest.mark.parametrize('zipped', [False, True])
def test_idx(tmp_path, grey, labels, zipped):
    """Catch little-endian sizes, and width for height."""
    write_idx(tmp_path, grey, labels, zipped)
    data = sources.load(f'idx:{tmp_path}')
    assert (data.image_shape, data.num_values, data.num_classes) == ((6, 5, 1), 256, 3)
    for name, part in (('train', slice(30)), ('test', slice(30, 40))):
        np.testing.assert_array_equal(data.splits[name].images[..., 0], grey[part])
        np.testing.assert_array_equal(data.splits[name].labels, labels[part])


def test_idx_without_labels(tmp_path, grey, labels):
    """Catch labels that are demanded of a set that has none."""
    write_idx(tmp_path, grey, labels)
    for _, name in IDX.values():
        (tmp_path / name).unlink()
    data = sources.load(f'idx:{tmp_path}')
    assert data.num_classes == 0 and (data.splits['train'].labels == -1).all()


ABSURD = struct.pack('>BBBB3I', 0, 0, 8, 3, 2**32 - 1, 4096, 4096)
WIDE = struct.pack('>BBBB3I', 0, 0, 8, 3, 1, 2**31, 1)


@pytest.mark.parametrize('name,content,sentence', [
    (IDX['train'][0], lambda old: old[:-1], 'cut short: it should hold 900 values'),
    (IDX['train'][0], lambda old: old + b'x', 'goes on after its end: it should hold'),
    (IDX['train'][0], lambda old: old[:9], 'idx3-ubyte is cut short'),
    (IDX['test'][0], lambda old: b'', 'starts with nothing'),
    (IDX['test'][0], lambda old: b'hello', "not a file of images in MNIST's format"),
    (IDX['test'][1], lambda old: b'hello', "not a file of labels in MNIST's format"),
    (IDX['train'][0], lambda old: WIDE, 'claims the shape .1, 2147483648, 1.: it is'),
    (IDX['train'][0], lambda old: ABSURD, 'more than can be held'),
    (IDX['train'][0], lambda old: to_idx(np.zeros((30, 6, 4))), 'are .6, 4, 1. but'),
    (IDX['test'][1], lambda old: to_idx(np.zeros(9)), '9 labels for 10 images'),
    (IDX['test'][1], None, 'labels for one of train and test only'),
    (IDX['test'][0], None, 'has no t10k-images-idx3-ubyte, plain or .gz'),
])
def test_idx_that_is_wrong(tmp_path, grey, labels, name, content, sentence):
    """Catch a traceback, or gigabytes reserved for a damaged size."""
    write_idx(tmp_path, grey, labels)
    path = tmp_path / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content(path.read_bytes()))
    with pytest.raises(UserError, match=sentence) as error:
        sources.load(f'idx:{tmp_path}')
    assert str(tmp_path) in str(error.value)


def test_zipped_idx_that_is_wrong(tmp_path, grey, labels):
    """Catch a traceback out of gzip."""
    write_idx(tmp_path, grey, labels, zipped=True)
    path = tmp_path / f'{IDX["train"][0]}.gz'
    whole = path.read_bytes()
    for content in (whole[:-20], b'hello', whole[:100] + bytes(20) + whole[120:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f'{path} is damaged'):
            sources.load(f'idx:{tmp_path}')


@pytest.mark.parametrize('name', [*IDX['train'], f'{IDX["test"][1]}.gz'])
def test_idx_of_pipes(tmp_path, grey, labels, name):
    """Catch a run that waits for a pipe for ever."""
    write_idx(tmp_path, grey, labels)
    (tmp_path / name.removesuffix('.gz')).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f'{name} is a pipe or a device, not a file'):
        sources.load(f'idx:{tmp_path}')


@pytest.fixture
def npz(tmp_path):
    """Save arrays and load them as a set."""

    def load(**arrays):
        np.savez_compressed(tmp_path / 'set.npz', **arrays)
        return sources.load(f'npz:{tmp_path / "set.npz"}')

    return load


def test_npz_with_both_splits(npz, images, labels):
    """Catch splits that are swapped or split again."""
    data = npz(
        train=images[:30], test=images[30:], train_labels=labels[:30],
        test_labels=labels[30:],
    )
    assert (data.image_shape, data.num_values, data.num_classes) == ((6, 5, 3), 256, 3)
    for name, part in (('train', slice(30)), ('test', slice(30, 40))):
        np.testing.assert_array_equal(data.splits[name].images, images[part])
        np.testing.assert_array_equal(data.splits[name].labels, labels[part])


@pytest.mark.parametrize('name,label_name', [
    ('images', 'labels'), ('train', 'train_labels'), ('x', 'labels'),
])
def test_npz_of_one_array(npz, images, labels, name, label_name):
    """Catch a tenth that is also trained on, and labels that are not split."""
    data = npz(**{name: images[..., 0].astype(np.int64), label_name: labels})
    assert data.image_shape == (6, 5, 1)
    for split, part in zip(('train', 'test'), hold_out(labels, name)):
        np.testing.assert_array_equal(data.splits[split].images, images[part, :, :, :1])
        np.testing.assert_array_equal(data.splits[split].labels, labels[part])


@pytest.mark.parametrize('names', [('train', 'validation'), ('train', 'validation',
                                                             'test')])
def test_npz_with_a_validation_split(npz, images, labels, names):
    """Catch a split that is ignored, or taken for the test split although there is one.

    The user's own splits stay as they are, in their order.
    """
    arrays = {name: images[i:20 + i] for i, name in enumerate(names)}
    own = {f'{name}_labels': labels[i:20 + i] for i, name in enumerate(names)}
    splits = npz(**arrays, **own).splits
    assert set(splits) == {'train', 'test', *names[:2 * (len(names) - 2)]}
    for name in names:
        found = splits[name if name in splits else 'test']
        np.testing.assert_array_equal(found.images, arrays[name])
        np.testing.assert_array_equal(found.labels, own[f'{name}_labels'])


@pytest.mark.parametrize('values', [[3, 7, 10**8], [0, 1, 2**62]])
def test_labels_are_numbered(npz, images, labels, values):
    """Catch 10^8 as the number of classes, and numbers that differ between splits."""
    sparse = np.array(values, np.uint64)[labels]
    data = npz(train=images[:30], train_labels=sparse[:30], test=images[30:],
               test_labels=sparse[30:])
    assert data.num_classes == 3 and data.class_names == tuple(map(str, values))
    for name, part in (('train', slice(30)), ('test', slice(30, 40))):
        np.testing.assert_array_equal(data.splits[name].labels, labels[part])


def test_npz_with_names_of_classes(npz, images, labels):
    """Catch names that are lost, or that belong to other labels."""
    assert npz(images=images, labels=labels).class_names == ()
    names = ['cat', 'dog', 'bird', 'none']
    data = npz(images=images, labels=labels % 3, class_names=names)
    assert (data.num_classes, data.class_names) == (4, tuple(names))
    for wrong in (names[:2], ['a', 'a', 'b'], [0, 1, 2], 'cat'):
        with pytest.raises(UserError, match='set.npz.* class_names'):
            npz(images=images, labels=labels, class_names=wrong)
    with pytest.raises(UserError, match='set.npz: class_names must be strings'):
        npz(images=images, class_names=names)


def test_npz_with_fewer_values(npz, images):
    """Catch V guessed from the images or ignored."""
    assert npz(images=images // 64).num_values == 256
    with pytest.raises(UserError, match='the test images have values of 0 and 1, '):
        npz(train=images, test=images // 255)
    assert npz(images=images // 64, num_values=4).num_values == 4
    assert npz(images=images > 99, num_values=2).splits['train'].images.max() == 1
    with pytest.raises(UserError, match='values from 0 to 255, not in 0 ... 3'):
        npz(images=images, num_values=4)


ZEROS = np.zeros((9, 4, 4), np.uint8)


@pytest.mark.parametrize('arrays,sentence', [
    (dict(images=np.zeros((9, 4, 4), np.float32)), 'is float32: store integers'),
    (dict(images=np.full((9, 4, 4), 256)), 'values from 256 to 256, not in 0 ... 255'),
    (dict(images=np.full((9, 4, 4), -1)), 'values from -1 to -1'),
    (dict(images=np.zeros((9, 16), np.uint8)), 'has the shape .9, 16.: images are'),
    (dict(images=np.zeros((9, 4, 4, 2), np.uint8)), 'has the shape .9, 4, 4, 2.'),
    (dict(images=np.zeros((0, 4, 4), np.uint8)), 'has the shape .0, 4, 4.'),
    (dict(images=np.uint8(3)), 'has the shape ..: images are'),
    (dict(images=np.zeros((1, 4, 4), np.uint8)), 'at least 2 are needed'),
    (dict(train=np.zeros((9, 4, 4), int), test=np.zeros((9, 4, 5), int)),
     'are .4, 4. but the test images are .4, 5.'),
    (dict(a=np.zeros((9, 4, 4), int), b=np.zeros((9, 4, 4), int)), 'holds a, b: name'),
    (dict(num_values=4), 'holds no images: name the arrays'),
    (dict(images=np.zeros((9, 4, 4), int), num_values=1), 'num_values is 1, not in'),
    (dict(images=np.zeros((9, 4, 4), int), num_values=[2, 3]), 'num_values is no'),
    (dict(images=np.zeros((9, 4, 4), int), labels=np.zeros(8, int)),
     '8 labels for 9 images'),
    (dict(images=np.zeros((9, 4, 4), int), labels=np.full(9, -1)), 'has labels int64'),
    (dict(images=np.zeros((9, 4, 4), int), labels=np.zeros((9, 3), int)), 'has labels'),
    (dict(images=np.zeros((9, 4, 4), int), labels=np.int64(3)), 'has labels int64'),
    (dict(images=np.zeros((9, 4, 4), int), test_labels=np.zeros(9, int)),
     'the labels test_labels belong to no images'),
    (dict(train=np.zeros((9, 4, 4), int), test=np.zeros((9, 4, 4), int),
          labels=np.zeros(9, int)), 'the labels labels belong to no images'),
    (dict(images=np.array([{}])), 'not a readable .npz file of plain arrays: Object'),
    (dict(train=ZEROS, test=ZEROS, train_label=np.zeros(9, int)),
     'nothing reads the array "train_label": did you mean "train_labels"'),
    (dict(train=ZEROS, val=ZEROS), 'reads the array "val": did you mean "validation"'),
    (dict(train=ZEROS, test=ZEROS, valid_labels=np.zeros(9, int)),
     'nothing reads the array "valid_labels": did you mean "validation_labels"'),
    (dict(images=ZEROS, label=np.zeros(9, int)), '"label": did you mean "labels"'),
    (dict(train=ZEROS, ids=np.arange(9)),
     'nothing reads the array "ids": take it out, or name it one of train, valid'),
    (dict(images=ZEROS, test=ZEROS),
     'nothing reads the array "images" beside one called like a split: name it'),
    (dict(images=ZEROS, labels=np.zeros(9, int), train_labels=np.zeros(9, int)),
     'the labels labels belong to no images'),
    (dict(test=ZEROS), 'has no split "train", only test: a model'),
    (dict(train=ZEROS, test=ZEROS, validation=np.zeros((9, 5, 4), int)),
     'are .4, 4. but the validation images are .5, 4.'),
    (dict(train=ZEROS, test=ZEROS, train_labels=np.arange(9),
          test_labels=np.full(9, 9)), 'has test images of the label 9 but no training'),
    (dict(images=ZEROS, labels=np.arange(9)), '9 image.s., each of another class'),
    (dict(images=ZEROS, labels=np.full(9, 2**63, np.uint64)), 'from 0 to 2.63 - 1'),
])
def test_npz_that_is_wrong(npz, arrays, sentence):
    """Catch floats cut to zero, wrapped values, and labels that don't match."""
    with pytest.raises(UserError, match=sentence) as error:
        npz(**arrays)
    assert 'set.npz' in str(error.value)


def test_npz_that_is_damaged(tmp_path, images):
    """Catch a traceback out of zipfile, and code run from a pickle."""
    path = tmp_path / 'set.npz'
    with pytest.raises(UserError, match=f'There is no file {path}'):
        sources.load(f'npz:{path}')
    for make, what in ((path.mkdir, 'directory'), (lambda: os.mkfifo(path), 'pipe')):
        make()
        with pytest.raises(UserError, match=f'{path} is a {what}.*check --dataset'):
            sources.load(f'npz:{path}')
        path.rmdir() if what == 'directory' else path.unlink()
    np.savez_compressed(path, images=images)
    whole = path.read_bytes()
    for content in (b'', b'hello', whole[:500], whole[:300] + bytes(9) + whole[309:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f'{path} is no'):
            sources.load(f'npz:{path}')


@pytest.mark.parametrize('kind', ['npz', 'idx', 'images'])
def test_home_directory(tmp_path, images, labels, monkeypatch, kind):
    """Catch ~ taken for a name: a shell leaves it alone after npz: and the like."""
    monkeypatch.setenv('HOME', str(tmp_path))
    if kind == 'npz':
        np.savez(tmp_path / 'set', images=images)
    elif kind == 'idx':
        (tmp_path / 'set').mkdir()
        write_idx(tmp_path / 'set', images[..., 0], labels)
    else:
        (tmp_path / 'set').mkdir()
        for i in range(2):
            Image.fromarray(images[i]).save(tmp_path / 'set' / f'{i}.png')
    spec = f'{kind}:~/set{".npz" if kind == "npz" else ""}'
    assert sources.load(spec).name == spec


def test_size_belongs_to_folders(tmp_path):
    """Catch a flag that is ignored in silence."""
    with pytest.raises(UserError, match='--image_size resizes images: folders'):
        sources.load('digits', image_size=16)
    assert sources.load('digits', image_size=8).image_shape == (8, 8, 1)


@pytest.mark.parametrize('spec', ['idx:', 'images:', 'npz:', 'synthetic:', 'idx'])
def test_nothing_after_the_colon(spec):
    """Catch the current directory read by mistake."""
    with pytest.raises(UserError, match=f'--dataset={spec} lacks'):
        sources.load(spec)


@pytest.mark.parametrize('how,num_values', [
    ('none', 17), ('dynamic', 17), ('threshold', 2), ('static', 2),
])
def test_binarize(how, num_values):
    """Catch V left as it was, images changed by 'dynamic', and a lost record."""
    plain, data = sources.load('digits'), sources.load('digits', binarize=how)
    assert (data.num_values, data.binarize) == (num_values, how)
    for name, split in data.splits.items():
        assert split.images.max() == num_values - 1
        np.testing.assert_array_equal(split.labels, plain.splits[name].labels)
        if num_values == 17:
            np.testing.assert_array_equal(split.images, plain.splits[name].images)


@pytest.mark.parametrize('validation', [False, True])
@pytest.mark.parametrize('how', ['none', 'static', 'dynamic'])
def test_other_images_in_a_large_file(how, validation, tmp_path):
    """Catch a run that goes on with other images, of which only some were looked at."""
    images = np.zeros((200, 2, 2, 1), np.uint8)
    images[0] = 255
    facts = []
    for change in (0, 1):
        images[1] = change  # not one that is looked at
        np.savez(tmp_path / 'set.npz', train=images, test=images[2:10])
        data = sources.load(
            f'npz:{tmp_path}/set.npz', binarize=how, memory_limit=0,
            validation=validation,
        )
        assert isinstance(data.splits['train'], image_set.StreamedExamples)
        facts.append(image_set.facts(data))
    path = tmp_path / 'data.json'
    path.write_text(facts[0])
    image_set.check_facts(str(path), facts[0])
    with pytest.raises(UserError, match='images or labels of its train split'):
        image_set.check_facts(str(path), facts[1])
    if validation:
        return  # other images are looked at
    # An older version looked at some images only.
    old = json.loads(facts[0])
    for split in old['splits'].values():
        del split['whole']
    path.write_text(json.dumps(old))
    image_set.check_facts(str(path), facts[1])


def test_binarize_that_is_wrong():
    """Catch a misspelt choice, and images that are binary already."""
    with pytest.raises(UserError, match='--binarize=fixed is not one of none, static'):
        sources.load('digits', binarize='fixed')
    with pytest.raises(UserError, match='ising is binary already.*--binarize=none'):
        sources.load('synthetic:ising', binarize='dynamic')


@pytest.mark.parametrize('kind', ['bool', 'uint8', 'num_values', 'idx'])
def test_bits_are_not_bytes(kind, npz, images, labels, tmp_path):
    """Catch bits that are taken for 256 values, all of them nearly black."""
    bits = images > 99
    if kind == 'idx':
        write_idx(tmp_path, bits[..., 0], labels)
        data = sources.load(f'idx:{tmp_path}')
    else:
        more = {'num_values': 256} if kind == 'num_values' else {}
        data = npz(images=bits if kind == 'bool' else bits.astype(np.uint8), **more)
    # Whoever says that there are 256 values is believed.
    assert data.num_values == (256 if kind == 'num_values' else 2)
    found = np.concatenate([data.splits[n].images for n in ('train', 'test')])
    order = np.arange(40) if kind == 'idx' else np.concatenate(
        hold_out(np.full(40, -1), kind)
    )
    np.testing.assert_array_equal(found[..., 0], bits[order, ..., 0])
