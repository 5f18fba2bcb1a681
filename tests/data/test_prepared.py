"""TFDS sets: read without TensorFlow, prepared with it, refused if damaged."""

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import streaming
from gm_jax.data import prepared, sources
from gm_jax.data.image_set import ArrayExamples, StreamedExamples
from gm_jax.data.splits import hold_out
from gm_jax.errors import UserError


def load(path, spec='tiny', **kwargs):
    """Load from the data_dir that holds the set at `path`."""
    return sources.load(spec, data_dir=str(path.parents[1]), **kwargs)


@pytest.mark.parametrize('memory_limit,kind', [
    (40 * 90, ArrayExamples), (40 * 90 - 1, StreamedExamples),
])
def test_images_and_labels(tfds_set, images, labels, memory_limit, kind):
    """Catch images out of order over shards, and a limit that is off by a split."""
    data = load(tfds_set(), memory_limit=memory_limit)
    assert data.name == 'tiny' and data.image_shape == (6, 5, 3)
    assert (data.num_values, data.num_classes, data.entropy) == (256, 3, None)
    for name, part in (('train', slice(30)), ('test', slice(30, 40))):
        split = data.splits[name]
        assert isinstance(split, kind) and len(split) == len(images[part])
        order = np.random.default_rng(1).permutation(len(split))
        batch = split.fetch(order)
        np.testing.assert_array_equal(batch['image'], images[part][order])
        np.testing.assert_array_equal(batch['label'], labels[part][order])
        assert (batch['image'].dtype, batch['label'].dtype) == (np.uint8, np.int32)


def test_reading_needs_no_tensorflow(tfds_set):
    """Catch an import that pulls TensorFlow, warns, or loads TFDS for other sets."""
    path = tfds_set()
    code = (
        'import sys\n'
        'from gm_jax.data import pipeline, sources\n'
        'sources.load("synthetic:checkers")\n'
        'assert not {"tensorflow_datasets", "grain", "sklearn"} & set(sys.modules)\n'
        f'data = sources.load("tiny", data_dir={str(path.parents[1])!r})\n'
        'assert len(data.splits["train"]) == 30\n'
        'assert "tensorflow" not in sys.modules\n'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'error', '-c', code], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_a_split_without_labels(tfds_set, images, labels, capsys):
    """Catch a class -1, by which a classifier is wrong each time."""
    parts = {'train': [(images, labels)], 'test': [(images[:3], np.full(3, -1))]}
    data = load(tfds_set(parts=parts))
    assert data.num_classes == 0 and data.class_names == ()
    said = capsys.readouterr().err
    assert 'NOTE: the test split of tiny' in said and said.count('\n') == 1
    assert 'counts as one without labels' in said
    # As ImageNet is used.
    parts['validation'] = [(images[:7], labels[:7])]
    data = load(tfds_set(parts=parts, version='2.0.0'))
    assert data.num_classes == 3 and set(data.splits) == {'train', 'test'}
    np.testing.assert_array_equal(data.splits['test'].labels, labels[:7])
    assert 'the validation split is the test set' in capsys.readouterr().err


@pytest.mark.parametrize('label', [-1, 3])
def test_a_label_that_is_no_class(tfds_set, images, labels, label):
    """Catch -1, which is the last class to a loss, where the first label is one."""
    wrong = np.where(np.arange(40) == 5, label, labels)
    path = tfds_set(parts={'train': [(images, wrong)], 'test': [(images, labels)]})
    with pytest.raises(UserError, match=f'image 5 has the label {label}, and classes'):
        load(path)


def test_a_split_without_images(tfds_set, images, labels):
    """Catch a set that is refused for a split that nothing needs."""
    path = tfds_set(parts={'train': [(images, labels)], 'test': [(images, labels)]})
    info = path / 'dataset_info.json'
    content = json.loads(info.read_text())
    empty = {**content['splits'][0], 'name': 'validation', 'shardLengths': []}
    content['splits'].append(empty)
    info.write_text(json.dumps(content))
    assert set(load(path).splits) == {'train', 'test'}


def test_grey_images_without_labels(tfds_set, images):
    """Catch a lost channel axis, and labels made up for a set without any."""
    grey = images[..., :1]
    parts = {'train': [(grey, np.zeros(40))], 'test': [(grey[:3], np.zeros(3))]}
    data = load(tfds_set(parts=parts, image_shape=(6, 5, 1), num_classes=0))
    assert (data.image_shape, data.num_classes) == ((6, 5, 1), 0)
    np.testing.assert_array_equal(data.splits['train'].images, grey)
    assert (data.splits['train'].labels == -1).all()


def test_stored_bits_are_bits(tfds_set, images):
    """Catch binarized MNIST taken for 256 grey values."""
    bits = images[..., :1] % 2
    parts = {key: [(bits, np.zeros(40))] for key in ('train', 'test')}
    path = tfds_set('binarized_mnist', parts, image_shape=(6, 5, 1), num_classes=0)
    assert load(path, 'binarized_mnist').num_values == 2
    with pytest.raises(UserError, match='binary already, so that --binarize=static'):
        load(path, 'binarized_mnist', binarize='static')
    parts = {key: [(255 * bits, np.zeros(40))] for key in ('train', 'test')}
    path = tfds_set('binarized_mnist', parts, image_shape=(6, 5, 1), num_classes=0)
    with pytest.raises(UserError, match='values up to 255; those of binarized_mnist'):
        load(path, 'binarized_mnist')


def test_names_of_classes(tfds_set):
    """Catch the names that TFDS keeps beside a set, lost; or made up."""
    path = tfds_set()
    assert load(path).class_names == ()
    (path / 'label.labels.txt').write_text('cat\ndog\nbird\n')
    assert load(path).class_names == ('cat', 'dog', 'bird')


def test_images_of_different_sizes_need_a_size(tfds_set, images, labels):
    """Catch sets such as LSUN's, whose metadata gives no size."""
    parts = {
        'train': [(images, labels), (images[:, :4], labels)], 'test': [(images, labels)]
    }
    path = tfds_set(parts=parts, image_shape=(None, None, 3))
    with pytest.raises(UserError, match='different sizes: pass --image_size'):
        load(path)
    data = load(path, image_size=4)
    assert data.image_shape == (4, 4, 3)
    assert data.splits['train'].images.shape == (80, 4, 4, 3)


@pytest.mark.parametrize('splits,sizes', [
    (('train',), {'train': 36, 'test': 4}),
    (('train', 'validation'), {'train': 40, 'test': 40}),
    (('train', 'validation', 'test'), {'train': 40, 'validation': 40, 'test': 40}),
    (('train', 'val'), {'train': 40, 'test': 40}),
])
def test_sets_without_a_test_split(
    tfds_set, images, labels, splits, sizes, monkeypatch
):
    """Catch LFW, which has one split, refused or tested on what it trains on."""
    path = tfds_set(parts={name: [(images, labels)] for name in splits})
    data = load(path)
    assert {name: len(split) for name, split in data.splits.items()} == sizes
    if len(splits) == 1:
        for name, rows in zip(('train', 'test'), hold_out(labels, 'tiny')):
            np.testing.assert_array_equal(data.splits[name].images, images[rows])
            np.testing.assert_array_equal(data.splits[name].labels, labels[rows])
        # The labels of a large split are not read for it.
        monkeypatch.setattr(prepared, '_MAX_LABEL_BYTES', 0)
        for name, rows in zip(('train', 'test'), hold_out(np.full(40, -1), 'tiny')):
            split = load(path, memory_limit=0).splits[name]
            batch = split.fetch(np.arange(len(split)))
            np.testing.assert_array_equal(batch['image'], images[rows])


def test_versions_and_configs(tfds_set, images, labels):
    """Catch 1.9.0 taken for newer than 1.10.0, and a config chosen by chance."""
    for version, num in (('1.9.0', 10), ('1.10.0', 20)):
        parts = {key: [(images[:num], labels[:num])] for key in ('train', 'test')}
        path = tfds_set(parts=parts, version=version)
    for spec, num in (
        ('tiny', 20), ('tiny:1.9.0', 10), ('tiny:1.*.*', 20), ('tiny:1.10.0', 20),
    ):
        assert len(load(path, spec).splits['train']) == num
    with pytest.raises(UserError, match='No prepared TFDS set tiny:2.0.0'):
        load(path, 'tiny:2.0.0')
    root = path.parents[1]
    (root / 'many').mkdir()
    for config in ('a', 'b'):
        shutil.copytree(path.parent, root / 'many' / config)
    with pytest.raises(UserError, match='choose one of --dataset=many/a, --data'):
        load(path, 'many')
    assert len(load(path, 'many/b').splits['train']) == 20


@pytest.mark.parametrize('damage,sentence', [
    ('cut', 'train.array_record-00001-of-00002 cannot be read: it is cut short'),
    ('empty', 'train.array_record-00001-of-00002 cannot be read'),
    ('missing', 'train.array_record-00001-of-00002 is missing: prepare the set'),
    ('swapped', 'train.array_record-00001-of-00002 holds 16 images, not 14'),
    ('bytes', 'tiny/1.0.0, split train cannot be read: Corrupted'),
])
@pytest.mark.parametrize('memory_limit', [0, 2**30])
def test_damaged_records(tfds_set, damage, sentence, memory_limit):
    """Catch a traceback, or fewer images in silence, for a damaged file."""
    first, second = sorted(tfds_set().glob('*train*'))
    content = second.read_bytes()
    if damage == 'missing':
        second.unlink()
    else:
        second.write_bytes({
            'cut': content[:len(content) // 2],
            'empty': b'',
            'swapped': first.read_bytes(),
            'bytes': content[:300] + bytes(50) + content[350:],
        }[damage])
    with pytest.raises(UserError, match=sentence):
        load(second.parent, memory_limit=memory_limit).splits['train'].fetch(
            np.arange(30)
        )


@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json'])
def test_damaged_metadata(tfds_set, name):
    """Catch a traceback out of TFDS for metadata that cannot be read."""
    path = tfds_set()
    (path / name).write_text('{')
    with pytest.raises(UserError, match='tiny/1.0.0 is not a readable TFDS set'):
        load(path)


@pytest.mark.parametrize('file,change,sentence', [
    ('features', lambda tree: tree['featuresDict']['features'].update(
        pixels=tree['featuresDict']['features'].pop('image')
    ), 'has no 8-bit feature "image", only: label .int64., pixels'),
    ('dataset_info', lambda info: info.update(fileFormat='tfrecord'),
     'is not prepared as array_record'),
    ('dataset_info', lambda info: info['splits'].pop(0), 'has no split "train"'),
])
def test_sets_that_cannot_be_used(tfds_set, file, change, sentence):
    """Catch a set of text, or of tfrecord files, that fails with a traceback."""
    path = tfds_set() / f'{file}.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=sentence):
        load(path.parent)


def test_not_prepared_and_no_tensorflow(tmp_path, monkeypatch):
    """Catch a sentence that does not say what is not where and what to do."""
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    for spec, advice in (
        ('mnist', f'gm-jax prepare mnist --data_dir={tmp_path}'),
        ('emnist/balanced', f'gm-jax prepare emnist/balanced --data_dir={tmp_path}'),
        ('mnist:3.*.*', f'gm-jax prepare mnist --data_dir={tmp_path}'),
        ('mnist:2.0.0', f'tfds build mnist:2.0.0 --data_dir={tmp_path}'),
        ('lfw', f'tfds build lfw --data_dir={tmp_path} --file_format=array_record'),
    ):
        with pytest.raises(UserError) as error:
            sources.load(spec, data_dir=str(tmp_path))
        message = str(error.value)
        assert f'No prepared TFDS set {spec} in {tmp_path}' in message
        assert advice in message
        needs_tensorflow = "pip install 'gm_jax[tensorflow]'" in message
        assert needs_tensorflow == ('tfds build' in advice)
    with pytest.raises(UserError, match='TFDS knows none of this name'):
        sources.load('mnits', data_dir=str(tmp_path))


def test_prepared_where_tensorflow_is_there(tfds_set, tmp_path, monkeypatch, capsys):
    """Catch a set that is not prepared as array_record, or not read afterwards."""
    import tensorflow_datasets as tfds

    class Builder:
        def download_and_prepare(self):
            tfds_set('mnist')

    def builder(spec, **kwargs):
        assert (spec, kwargs) == (
            'mnist', {'data_dir': str(tmp_path), 'file_format': 'array_record'}
        )
        return Builder()

    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
    monkeypatch.setattr(tfds, 'builder', builder)
    assert len(sources.load('mnist', data_dir=str(tmp_path)).splits['train']) == 30
    assert 'preparing it there with TensorFlow' in capsys.readouterr().err
    shutil.rmtree(tmp_path / 'mnist')
    monkeypatch.setattr(Builder, 'download_and_prepare', lambda self: 1 / 0)
    with pytest.raises(UserError, match='could not prepare mnist.*ZeroDivisionError'):
        sources.load('mnist', data_dir=str(tmp_path))


@pytest.mark.parametrize('spec', ['', 'a b', 'a/b/c', '../mnist', 'mnist:', 'http://x'])
def test_what_is_no_name(spec, tmp_path):
    """Catch a path or nonsense looked up as a set."""
    with pytest.raises(UserError, match='is not a set: give one of digits, a TFDS'):
        sources.load(spec, data_dir=str(tmp_path))


def test_streaming_benchmark(tmp_path):
    """Catch a benchmark that no longer runs."""
    out = tmp_path / 'rows.json'
    streaming.main([
        '--num_images=600', f'--dir={tmp_path}', '--batch_size=20', f'--out={out}'
    ])
    (row,) = json.loads(out.read_text())
    assert row['images_read'] == row['num_images'] == 600
    assert len(row['resident_mb']) == 11
