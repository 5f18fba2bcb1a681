"""What identifies an image set, and the names of its classes."""

import dataclasses
import json

import numpy as np
import pytest

from gm_jax.data import image_set
from gm_jax.data.image_set import ArrayExamples, ImageSet, StreamedExamples
from gm_jax.errors import UserError


@pytest.fixture
def data(images, labels) -> ImageSet:
    """Three classes, of which two have numbers for names, but not their own."""
    return ImageSet(
        name='npz:set', image_shape=(6, 5, 3), num_values=256, num_classes=3,
        splits={'train': ArrayExamples(images, labels)}, class_names=('dog', '0', '7'),
    )


@pytest.mark.parametrize('text,number', [
    ('dog', 0), ('0', 1), ('7', 2), ('1', 1), ('2', 2),
])
def test_class_by_name_or_number(data, text, number):
    """Catch the number 0 for the class that is called 0."""
    assert image_set.class_number(data, text) == number


@pytest.mark.parametrize('text', ['', '3', '-2', 'Dog', '1.0', '9' * 5000, '\u0662'])
def test_what_is_no_class(data, text):
    """Catch a traceback, and a class that is none."""
    with pytest.raises(UserError, match=r'npz:set: these are 0 to 2 \(dog, 0, 7\)'):
        image_set.class_number(data, text)
    unnamed = dataclasses.replace(data, class_names=())
    with pytest.raises(UserError, match=r'npz:set: these are 0 to 2\.'):
        image_set.class_number(unnamed, text)


def test_names_are_facts(tmp_path, data):
    """Catch names that a sampler cannot see, and classes that changed theirs."""
    path = tmp_path / 'data.json'
    path.write_text(image_set.facts(data))
    assert image_set.read_facts(str(path)).class_names == data.class_names
    image_set.check_facts(str(path), image_set.facts(data))
    renamed = dataclasses.replace(data, class_names=('dog', '0', '8'))
    with pytest.raises(UserError, match='its class_names was'):
        image_set.check_facts(str(path), image_set.facts(renamed))


def test_images_of_another_run(tmp_path, data, images, labels):
    """Catch a file that has moved, and other images in its place."""
    path = tmp_path / 'data.json'
    data = dataclasses.replace(data, splits={
        'train': ArrayExamples(images, labels),
        'test': ArrayExamples(images[:9], labels[:9]),
    })
    path.write_text(image_set.facts(data))
    held_out = {
        'train': ArrayExamples(images[5:], labels[5:]), 'test': data.splits['test'],
        'validation': ArrayExamples(images[:5], labels[:5]),
    }
    moved = dataclasses.replace(data, name='npz:/there/set', splits=held_out)
    image_set.check_same_images(str(path), moved, 'it is a model')
    # Each process of a run may have them elsewhere.
    there = dataclasses.replace(data, name='npz:/there/set')
    alike = [image_set.alike(image_set.facts(x)) for x in (data, there, moved)]
    assert alike[0] == alike[1]
    other = {name for name in alike[2] if alike[2][name] != alike[0].get(name)}
    assert other == {'a train split of', 'a validation split of'}
    for name, changed in (
        ('idx:set', data), ('mnist', data),
        ('npz:set', dataclasses.replace(data, binarize='dynamic')),
    ):
        with pytest.raises(UserError, match=r'it is a model of npz \(6, 5, 3\)'):
            image_set.check_same_images(
                str(path), dataclasses.replace(changed, name=name), 'it is a model'
            )
    for other in (ArrayExamples(images[1:10], labels[1:10]),
                  ArrayExamples(images[:9], labels[1:10])):
        changed = dataclasses.replace(data, splits={**data.splits, 'test': other})
        with pytest.raises(UserError, match='it is a model of other images'):
            image_set.check_same_images(str(path), changed, 'it is a model')


def test_runs_of_older_versions_go_on(tmp_path, data):
    """Catch a run that cannot be resumed for want of names."""
    path = tmp_path / 'data.json'
    old = json.loads(image_set.facts(data))
    del old['class_names']
    path.write_text(json.dumps(old))
    assert image_set.read_facts(str(path)).class_names == ()
    image_set.check_facts(str(path), image_set.facts(data))


@pytest.mark.parametrize('names', ['abc', ['a', 'b'], ['a', 'b', 3], {'a': 1}, None])
def test_damaged_names(tmp_path, data, names):
    """Catch a traceback for data.json that was edited by hand."""
    path = tmp_path / 'data.json'
    path.write_text(json.dumps({**json.loads(image_set.facts(data)),
                                'class_names': names}))
    with pytest.raises(UserError, match='data.json, which describes'):
        image_set.read_facts(str(path))


@pytest.mark.parametrize('key,text', [
    ('num_values', 'Infinity'), ('num_classes', '1e999'),
    ('image_shape', '[1, 1e999, 1]'),
    ('entropy', '1' + '0' * 400), ('name', '[' * 10**5),
    ('splits', '{"train": {"num_examples": Infinity, "digest": ""}}'),
])
def test_damaged_facts(tmp_path, data, key, text):
    """Catch a traceback for numbers and brackets without end."""
    path = tmp_path / 'data.json'
    found = json.dumps({**json.loads(image_set.facts(data)), key: '@'})
    path.write_text(found.replace('"@"', text))
    with pytest.raises(UserError, match='data.json, which describes'):
        image_set.read_facts(str(path))


def test_a_set_is_shown_without_its_pixels():
    """Catch a notebook that is flooded by the set that its reader looks at."""
    held = ArrayExamples(np.zeros((70_000, 4, 4, 3), np.uint8), np.zeros(70_000, 'i4'))
    streamed = StreamedExamples(5, held.fetch, 'a name of a file\n' * 5)
    shown = repr(ImageSet(
        name='x', image_shape=(4, 4, 3), num_values=256, num_classes=0,
        splits={'train': held, 'test': streamed},
    ))
    assert '70000 images 4x4x3' in shown and '5 images, read' in shown
    assert len(shown) < 300


@pytest.mark.parametrize('total, most', [(5000, 500), (5003, 500), (7, 9), (3, 3)])
def test_a_part_is_from_all_over(total, most):
    """Catch a part of one class, in sets that are sorted and where classes take turns.

    Of 500 examples the share of one of ten classes has a deviation of 0.013 at most.
    """
    rows = image_set.spread(total, most)
    assert len(rows) == min(total, most) and np.all(np.diff(rows) > 0)
    assert 0 <= rows[0] and rows[-1] < total
    if total > most:
        for labels in (np.arange(total) % 10, np.arange(total) * 10 // total):
            shares = np.bincount(labels[rows], minlength=10) / most
            np.testing.assert_allclose(shares, 0.1, atol=0.06)
