"""Pictures, pixel by pixel."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from gm_jax import plotting
from gm_jax.errors import UserError


def _read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_to_uint8_spans_the_range():
    """Catch 17 values divided by 17: white would be grey."""
    out = plotting.to_uint8(np.arange(17), num_values=17)
    assert out.dtype == np.uint8 and out[0] == 0 and out[8] == 128 and out[16] == 255
    binary = plotting.to_uint8(np.array([0, 1]), num_values=2)
    np.testing.assert_array_equal(binary, [0, 255])
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(plotting.to_uint8(every), every)


def test_to_uint8_of_floats():
    """Catch values that wrap around: 1.1 must not be black."""
    out = plotting.to_uint8(np.array([-0.1, 0, 0.5, 1, 1.1, np.nan], np.float32))
    np.testing.assert_array_equal(out, [0, 0, 128, 255, 255, 0])
    np.testing.assert_array_equal(plotting.to_uint8(np.array([True, False])), [255, 0])


@pytest.mark.parametrize('pixel', [-1, 17])
def test_to_uint8_refuses_values_out_of_range(pixel):
    """Catch a picture of wrong data that looks almost right."""
    with pytest.raises(ValueError, match='pixels must be in'):
        plotting.to_uint8(np.array([0, pixel]), num_values=17)


def test_image_grid_puts_every_image_in_its_cell():
    """Catch rows taken for columns, and cells off by the padding."""
    images = np.random.default_rng(0).integers(256, size=(5, 2, 3, 3), dtype=np.uint8)
    grid = plotting.image_grid(images, columns=3, padding=1)
    assert grid.shape == (2 * 3 + 1, 3 * 4 + 1, 3) and grid.dtype == np.uint8
    rest = np.ones(grid.shape, bool)
    for n, image in enumerate(images):
        top, left = 1 + n // 3 * 3, 1 + n % 3 * 4
        np.testing.assert_array_equal(grid[top:top + 2, left:left + 3], image)
        rest[top:top + 2, left:left + 3] = False
    assert np.all(grid[rest] == 128)


def test_image_grid_is_square_by_default():
    """Catch one long row."""
    assert plotting.image_grid(np.zeros((9, 4, 4, 1)), padding=0).shape == (12, 12, 1)


def test_manifold_leaves_no_gaps():
    """Catch a transposed grid."""
    images = np.arange(6).reshape(2, 3, 1, 1, 1)
    np.testing.assert_array_equal(
        plotting.manifold(images)[..., 0], [[0, 1, 2], [3, 4, 5]]
    )


def test_labelled_rows_keep_the_images():
    """Catch a caption that covers the images, or rows without one."""
    rows = np.random.default_rng(0).integers(2, size=(2, 3, 8, 8, 1))
    out = plotting.labelled_rows(rows, ['first', 'second'], num_values=2)
    grid = plotting.image_grid(
        rows.reshape(6, 8, 8, 1).repeat(3, 1).repeat(3, 2),
        columns=3, padding=2, num_values=2,
    )
    margin = out.shape[1] - grid.shape[1]
    np.testing.assert_array_equal(out[:, margin:], grid)
    middle = len(out) // 2
    for half in (out[:middle, :margin], out[middle:, :margin]):
        assert half.min() < 128 < half.max()


def test_rows_of_series_fit_a_screen():
    """Catch a picture too wide to be shown, for the sake of the caption."""
    out = plotting.labelled_rows(np.zeros((2, 10, 1, 300, 1), np.uint8), ['a', 'b'])
    assert out.shape[0] > 48 and 3000 < out.shape[1] < 4100


def test_samples_of_a_class_are_in_its_row():
    """Catch rows for columns, images that are dropped, and names that cannot be drawn.

    The names are those of a user's folders.
    """
    images = np.random.default_rng(0).integers(256, size=(8, 24, 24, 1), dtype=np.uint8)
    names = ['cat', 'line\nbreak \udcff \u732b', 'long' * 99]
    out = plotting.sample_grid(images, names)
    blank = np.full((1, 24, 24, 1), 128, np.uint8)
    rows = np.concatenate([images, blank])[[0, 3, 6, 1, 4, 7, 2, 5, 8]]
    grid = plotting.image_grid(rows, columns=3, padding=2)
    np.testing.assert_array_equal(out[:, out.shape[1] - grid.shape[1]:], grid)
    assert out.shape[1] - grid.shape[1] < 400
    plain = plotting.image_grid(images)
    np.testing.assert_array_equal(plotting.sample_grid(images), plain)
    many = [str(number) for number in range(9)]
    np.testing.assert_array_equal(plotting.sample_grid(images, many), plain)


def test_reconstructions_pair_inputs_and_outputs():
    """Catch pairs that are not above each other, and images that are dropped."""
    x = np.arange(5).reshape(5, 1, 1, 1) * np.ones((1, 24, 24, 1), int)
    out = plotting.reconstructions(x, x / 10 + 0.5, columns=3, num_values=5)
    # Cells of 24 pixels and a border of 2, at the right of the captions.
    margin = out.shape[1] - (3 * 26 + 2)
    cells = out[14::26, margin + 14::26, 0]
    grey = 128
    expected = plotting.to_uint8(np.array(
        [[0, 1, 2], [0.5, 0.6, 0.7], [3, 4, 0], [0.8, 0.9, 0]]
    ) / np.array([4, 1, 4, 1])[:, None])
    expected[2:, 2] = grey
    np.testing.assert_array_equal(cells, expected)


@pytest.mark.parametrize('channels', [1, 3])
def test_save_png_enlarges_without_smoothing(tmp_path, channels):
    """Catch a file of 8 pixels, and a blurred one."""
    image = np.random.default_rng(0).integers(
        256, size=(8, 10, channels), dtype=np.uint8
    )
    path = tmp_path / 'new' / 'x.png'
    plotting.save_png(path, image, min_side=25)
    out = _read(path).reshape(24, 30, channels)
    np.testing.assert_array_equal(out, image.repeat(3, axis=0).repeat(3, axis=1))
    plotting.save_png(path, image, min_side=1)
    np.testing.assert_array_equal(_read(path).reshape(image.shape), image)
    assert os.listdir(path.parent) == ['x.png']


def test_save_png_replaces_in_one_go(tmp_path, monkeypatch):
    """Catch a file that is half-written when the run is killed."""
    path = tmp_path / 'x.png'
    plotting.save_png(path, np.zeros((2, 2, 1), np.uint8))
    before = path.read_bytes()

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', killed)
    with pytest.raises(KeyboardInterrupt):
        plotting.save_png(path, np.ones((2, 2, 1), np.uint8))
    assert path.read_bytes() == before


@pytest.mark.parametrize('call', [
    lambda: plotting.image_grid(np.zeros((2, 2, 1))),
    lambda: plotting.image_grid(np.zeros((0, 2, 2, 1))),
    lambda: plotting.manifold(np.zeros((4, 2, 2, 1))),
    lambda: plotting.labelled_rows(np.zeros((2, 2, 2, 2, 1)), ['one']),
    lambda: plotting.reconstructions(np.zeros((2, 2, 2, 1)), np.zeros((1, 2, 2, 1))),
    lambda: plotting.reconstructions(np.zeros((0, 2, 2, 1)), np.zeros((0, 2, 2, 1))),
    lambda: plotting.reconstructions(*[np.zeros((2, 2, 2, 1))] * 2, columns=0),
    lambda: plotting.save_png('x.png', np.zeros((2, 2, 1))),
    lambda: plotting.save_png('x.png', np.zeros((2, 2), np.uint8)),
    lambda: plotting.save_png('x.png', np.zeros((2, 2, 2), np.uint8)),
])
def test_wrong_shapes_raise(call):
    """Catch pictures made of the wrong axes."""
    with pytest.raises(ValueError):
        call()


def _write_rows(path, rows, end='\n'):
    path.write_text('\n'.join(json.dumps(row) for row in rows) + end)


def test_curves_draws_each_split(tmp_path):
    """Catch a split or a metric that is left out: the picture would not change."""
    train = [{'step': s, 'split': 'train', 'loss': 9.0 - s, 'kl': s} for s in range(5)]
    test = [{'step': 4, 'split': 'test', 'loss': 6.0}]
    pictures = []
    for rows, name in ((train, 'loss'), (train + test, 'loss'), (train, 'kl')):
        _write_rows(tmp_path / 'metrics.jsonl', rows)
        plotting.curves(tmp_path / 'metrics.jsonl', tmp_path / 'c.png', name=name)
        pictures.append(_read(tmp_path / 'c.png'))
    assert pictures[0].shape[:2] == (480, 720)
    assert (pictures[0] != pictures[1]).any() and (pictures[0] != pictures[2]).any()


def test_curves_ignores_a_line_still_being_written(tmp_path):
    """Catch a plot that fails while the run goes on."""
    rows = [{'step': 0, 'split': 'train', 'loss': 1.0}]
    # Also lines that somebody has put there.
    rows += [{'step': 1, 'loss': 2.0}, [3]]
    _write_rows(tmp_path / 'metrics.jsonl', rows, end='\n\n{"step": 1, "spl')
    plotting.curves(tmp_path / 'metrics.jsonl', tmp_path / 'c.png')
    assert (tmp_path / 'c.png').exists()


@pytest.mark.parametrize('content, message', [
    (None, 'cannot be read'),
    ('{"step": 0\n{"step": 1}\n', 'is damaged'),
    ('{"step": 0, "split": "train", "kl": 1}\n', "has no 'loss'"),
])
def test_curves_names_the_file_that_is_wrong(tmp_path, content, message):
    """Catch a traceback where the user needs a sentence."""
    path = tmp_path / 'metrics.jsonl'
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=f'metrics.jsonl {message}'):
        plotting.curves(path, tmp_path / 'c.png')


def test_fan_charts_show_truth_and_forecast():
    """Catch forecasts drawn at the wrong time: the future alone has colour."""
    x = np.full((2, 10), 200)
    draws = np.random.default_rng(0).integers(50, 100, (2, 30, 5))
    chart = plotting.fan_charts(x, draws)
    assert chart.dtype == np.uint8 and chart.shape[2] == 3
    colour = (chart.max(2).astype(int) - chart.min(2) > 20)[40:]  # below the legend
    left = colour[:, :chart.shape[1] // 2].any(0)
    assert not left[:chart.shape[1] // 4].any() and left[-40:-20].all()


def test_scatter_shows_data_and_samples():
    """Catch points that are drawn elsewhere: the samples alone have colour."""
    x = np.array([[0, 0], [255, 255]])
    picture = plotting.scatter(x, np.full((5, 2), 50))
    colour = (picture.max(2).astype(int) - picture.min(2) > 40)[60:]  # below the legend
    rows, columns = np.nonzero(colour)
    height, width = colour.shape
    assert len(rows) and rows.min() > height / 2 and columns.max() < width / 2
    # Two labels are two colours.
    points = np.array([[50, 50], [90, 90]])
    both = plotting.scatter(x, points, labels=np.array([0, 1]))[60:]
    assert len(np.unique(both[both.max(2) - both.min(2) > 100], axis=0)) > 1


@pytest.mark.parametrize('channels', [1, 3])
def test_axes_leave_every_pixel_of_the_picture(channels):
    """Catch a picture that is smoothed, turned over or cut by its axes."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (6, 9, channels), dtype=np.uint8)
    drawn = plotting.with_axes(
        picture, rows=['a', 'b'], columns=['1', '2', '3'], xlabel='x', ylabel='y',
        title='title',
    )
    factor = 54  # 480 pixels or more
    inside = drawn[40:40 + 6 * factor, 110:110 + 9 * factor]
    centres = inside[factor // 2::factor, factor // 2::factor]
    np.testing.assert_array_equal(centres, np.broadcast_to(picture, (6, 9, 3)))
    outside = drawn.astype(int).sum(-1) < 200  # dark: text
    assert outside[:, :100].any() and outside[-45:].any() and outside[:30].any()


def test_interpolations_have_a_row_for_each_pair():
    """Catch rows that are taken for columns."""
    images = np.zeros((2 * 3, 4, 4, 1))
    images[3:] = 1.0
    drawn = plotting.interpolations(images, 3, 'code')
    height, width = (drawn.shape[0] - 100, drawn.shape[1] - 140)
    inside = drawn[40:40 + height, 110:110 + width]
    assert inside[height // 4, width // 6].max() == 0
    assert inside[3 * height // 4, 5 * width // 6].min() == 255
