"""Scores of samples: what is compared with what."""

import dataclasses

import numpy as np
import pytest

from gm_jax.data import sources
from gm_jax.errors import UserError
from gm_jax.families import scores


def _draw_from(examples, data):
    images = scores.as_seen(examples, np.arange(len(examples)), data)
    return lambda num: images[:num]


def test_the_data_score_better_than_noise():
    """Catch samples compared in other units than the images."""
    data = sources.load('digits')
    test, settings = data.splits['test'], dict(
        most=1000, data=data, features=scores.PIXELS
    )
    same = scores.score(_draw_from(test, data), test, True, **settings)
    assert same['pixel_frechet_distance'] < 1e-6
    assert same['num_real'] == same['num_fake'] == len(test) == 297
    assert same['precision'] == same['recall'] == same['coverage'] == 1
    others = _draw_from(data.splits['train'], data)
    other = scores.score(others, test, False, **settings)
    rng = np.random.default_rng(0)
    noise = scores.score(
        lambda num: rng.integers(0, 256, (num, 8, 8, 1), dtype=np.uint8), test, False,
        **settings,
    )
    assert 0 < other['pixel_frechet_distance'] < noise['pixel_frechet_distance'] / 5
    assert 'precision' not in noise


def test_fewer_of_wide_features_during_training(monkeypatch):
    """Catch Frechet distances in training that take longer than the training."""
    monkeypatch.setattr(scores, '_QUICK', 10)
    monkeypatch.setattr(scores, '_QUICK_COST', 100 * 64**2)
    data = sources.load('digits')
    train, drawn = data.splits['train'], []

    def draw(num):
        drawn.append(num)
        return train.images[:num] * np.uint8(15)

    wide = scores.Features('wide', lambda x: np.tile(scores.pixels(x), 8))
    narrow = scores.Features('narrow', lambda x: scores.pixels(x)[:, :8])
    for features, last in (
        (wide, False), (scores.PIXELS, False), (narrow, False), (wide, True)
    ):
        found = scores.score(
            draw, train, last, most=150, data=data, features=features
        )
        assert found['num_real'] == found['num_fake'] == drawn[-1]
    assert drawn == [10, 100, 150, 150]


def test_samples_that_miss_classes_are_precise():
    """Catch precision and recall exchanged."""
    data = sources.load('digits')
    train = data.splits['train']
    few = train.images[train.labels < 3]
    found = scores.score(
        _draw_from(sources.ArrayExamples(few, train.labels[train.labels < 3]), data),
        train, True, most=len(few), data=data, features=scores.PIXELS,
    )
    assert found['precision'] > 0.9 and found['recall'] < 0.6


def test_a_sorted_set_is_not_compared_by_its_first_classes():
    """Catch the first images of a folder, which are all of one class."""
    data = sources.load('digits')
    train = data.splits['train']
    order = np.argsort(train.labels, kind='stable')
    train = sources.ArrayExamples(train.images[order], train.labels[order])
    found = scores.score(
        _draw_from(data.splits['test'], data), train, False, most=150, data=data,
        features=scores.PIXELS,
    )
    first = scores.score(
        _draw_from(data.splits['test'], data),
        sources.ArrayExamples(train.images[:150], train.labels[:150]), False, most=150,
        data=data, features=scores.PIXELS,
    )
    name = 'pixel_frechet_distance'
    assert found[name] < first[name] / 2


def test_images_are_seen_as_the_model_sees_them():
    """Catch grey images set against samples of a model of binary ones."""
    data = sources.load('digits', binarize='dynamic')
    rows = np.arange(50)
    x = scores.as_seen(data.splits['test'], rows, data)
    assert set(np.unique(x)) == {0, 255}
    np.testing.assert_array_equal(x, scores.as_seen(data.splits['test'], rows, data))
    np.testing.assert_array_equal(
        x[7:9], scores.as_seen(data.splits['test'], rows[7:9], data)
    )
    other = scores.as_seen(data.splits['test'], rows, data, train=True)
    assert np.any(x != other)  # a row of the training split has another key
    grey = sources.load('digits')
    levels = scores.as_seen(grey.splits['test'], rows, grey)
    np.testing.assert_array_equal(
        levels, np.rint(grey.splits['test'].images[:50] * (255 / 16))
    )


def test_large_images_are_averaged():
    """Catch features of 12288 pixels, and a mean over the wrong pixels."""
    x = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    features = scores.pixels(x)
    assert features.shape == (2, 32 * 32 * 3)
    expected = x[1, 10:12, 20:22, 2].mean() / 255
    np.testing.assert_allclose(
        features.reshape(2, 32, 32, 3)[1, 5, 10, 2], expected, rtol=1e-5
    )


def test_splits_too_small_to_compare():
    """Catch a traceback at the end of a run."""
    data = sources.load('digits')
    test = data.splits['test']
    few = sources.ArrayExamples(test.images[:4], test.labels[:4])
    data = dataclasses.replace(data, splits={**data.splits, 'test': few})
    with pytest.raises(UserError, match='test split of digits has 4 images'):
        scores.check_splits(data)
    with pytest.raises(UserError, match='--test_examples=4 is too few: 5 images'):
        scores.check_splits(sources.load('digits'), 4)
    scores.check_splits(sources.load('digits'), 5)


def test_the_nearest_image_of_an_image_is_itself():
    """Catch rows that are mixed up."""
    data = sources.load('digits')
    samples = scores.as_seen(data.splits['train'], np.array([3, 700]), data)
    picture = scores.nearest_images(samples, data, scores.PIXELS)
    half = picture.shape[0] // 2
    left = picture.shape[1] - 44  # the images, without the labels
    np.testing.assert_array_equal(picture[2:half, left:], picture[half + 1:-1, left:])
