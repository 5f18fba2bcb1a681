"""Pictures of runs: image grids, latent manifolds, reconstructions and loss curves.

    plotting.save_png(path, plotting.image_grid(samples, num_values=17))

Images are arrays [N, H, W, C] with C = 1 or 3: integers in [0, V), or floats in [0, 1].
"""

import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gm_jax.data import files
from gm_jax.errors import UserError

__all__ = [
    'curves', 'fan_charts', 'image_grid', 'interpolations', 'labelled_rows',
    'manifold', 'reconstructions', 'sample_grid', 'save_png', 'scatter', 'to_png',
    'to_uint8', 'with_axes',
]

# Grey between cells shows where a black or a white picture ends.
_BORDER = 128
_MOST_WIDTH = 4000  # pixels of a row of series that are enlarged
_CAPTION = 24  # letters of the name of a class at most


def to_uint8(x: np.ndarray, *, num_values: int = 256) -> np.ndarray:
    """Scale pixels to [0, 255].

    Args:
        x: integer in [0, num_values), or boolean or float in [0, 1]; floats outside are
            clipped, NaN is drawn black.
        num_values: V, the number of values of integer pixels.

    Returns:
        uint8 array of the same shape.

    Raises:
        ValueError: an integer is outside [0, num_values).
    """
    x = np.asarray(x)
    if np.issubdtype(x.dtype, np.integer):
        if x.size and not 0 <= x.min() <= x.max() < num_values:
            raise ValueError(
                f'pixels must be in [0, {num_values}), got {x.min()} to {x.max()}'
            )
        unit = x / (num_values - 1)
    else:
        unit = np.clip(np.nan_to_num(x.astype(np.float64)), 0, 1)
    return np.round(unit * 255).astype(np.uint8)


def image_grid(
    images: np.ndarray,
    *,
    columns: int = 0,
    padding: int = 1,
    num_values: int = 256,
) -> np.ndarray:
    """Lay images out row by row in one picture.

    Args:
        images: [N, H, W, C] integer in [0, num_values) or float in [0, 1].
        columns: images per row; 0 makes the grid as square as it can be.
        padding: pixels around each image.
        num_values: V, the number of values of pixels in integer images.

    Returns:
        [rows * (H + padding) + padding, columns * (W + padding) + padding, C] uint8;
        the cells that N does not fill are grey.

    Raises:
        ValueError: images is not [N, H, W, C] with N > 0, or a pixel is out of range.
    """
    images = to_uint8(images, num_values=num_values)
    if images.ndim != 4 or not len(images):
        raise ValueError(f'images must be [N, H, W, C], got {images.shape}')
    num, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    cells = np.full((rows * columns, height, width, channels), _BORDER, np.uint8)
    cells[:num] = images
    # Every cell brings the padding above and to its left.
    before = ((0, 0), (padding, 0), (padding, 0), (0, 0))
    cells = np.pad(cells, before, constant_values=_BORDER)
    cells = cells.reshape(rows, columns, *cells.shape[1:]).transpose(0, 2, 1, 3, 4)
    grid = cells.reshape(rows * (height + padding), -1, channels)
    after = ((0, padding), (0, padding), (0, 0))
    return np.pad(grid, after, constant_values=_BORDER)


def manifold(images: np.ndarray, *, num_values: int = 256) -> np.ndarray:
    """Lay out a decoded 2-D latent grid without gaps.

    Args:
        images: [n, m, H, W, C], as `gm_jax.sampling.latent.manifold` returns it.
        num_values: V, the number of values of pixels in integer images.

    Returns:
        [n * H, m * W, C] uint8.

    Raises:
        ValueError: images is not of rank 5, or a pixel is out of range.
    """
    flat = _flatten_rows(images)
    return image_grid(
        flat, columns=np.shape(images)[1], padding=0, num_values=num_values
    )


def labelled_rows(
    rows: np.ndarray,
    labels: Sequence[str],
    *,
    padding: int = 2,
    num_values: int = 256,
) -> np.ndarray:
    """Lay out rows of images with a caption at the left of each row.

    Images less high than a line of text are enlarged by an integer factor; long series,
    which are one pixel high, by a smaller one in width.

    Args:
        rows: [R, K, H, W, C] integer in [0, num_values) or float in [0, 1].
        labels: R captions.
        padding: pixels around each image.
        num_values: V, the number of values of pixels in integer images.

    Returns:
        [H', W', C] uint8.

    Raises:
        ValueError: rows is not of rank 5, or there is not one label per row.
    """
    flat = to_uint8(_flatten_rows(rows), num_values=num_values)
    if len(labels) != len(rows):
        raise ValueError(f'{len(labels)} labels for {len(rows)} rows')
    font = ImageFont.load_default()
    factor = max(1, math.ceil(24 / flat.shape[1]))
    columns = np.shape(rows)[1]
    width = factor
    if flat.shape[1] == 1:  # series, whose pixels may become higher than wide
        width = max(1, min(factor, _MOST_WIDTH // (columns * flat.shape[2])))
    flat = flat.repeat(factor, axis=1).repeat(width, axis=2)
    grid = image_grid(flat, columns=columns, padding=padding)
    margin = math.ceil(max(font.getlength(label) for label in labels)) + 8
    strip = Image.new('L', (margin, len(grid)), 255)
    draw = ImageDraw.Draw(strip)
    cell = flat.shape[1] + padding
    for row, label in enumerate(labels):
        middle = padding + row * cell + (cell - padding) // 2
        _, top, _, bottom = font.getbbox(label)
        draw.text((4, middle - (top + bottom) // 2), label, fill=0, font=font)
    caption = np.repeat(np.asarray(strip)[..., None], grid.shape[-1], axis=-1)
    return np.concatenate([caption, grid], axis=1)


def sample_grid(images: np.ndarray, classes: Sequence[str] = ()) -> np.ndarray:
    """Lay out generated images, those of each class in a row of their own.

    Args:
        images: [N, H, W, C] uint8; with classes, image i is of class i mod K.
        classes: the names of the K classes; () for images without classes.

    Returns:
        [H', W', C] uint8: an `image_grid` where no class would have two images.
    """
    num = math.ceil(len(images) / max(len(classes), 1))
    if not classes or num < 2:
        return image_grid(images)
    blank = num * len(classes) - len(images)
    fill = ((0, blank), (0, 0), (0, 0), (0, 0))
    cells = np.pad(images, fill, constant_values=_BORDER)
    rows = cells.reshape(num, len(classes), *images.shape[1:]).swapaxes(0, 1)
    return labelled_rows(rows, [_caption(name) for name in classes])


def _caption(name: str) -> str:
    """Shorten a name, and replace what the font cannot draw or measure."""
    shown = ''.join(letter if letter.isprintable() else '?' for letter in name)
    return shown if len(shown) <= _CAPTION else f'{shown[:_CAPTION - 3]}...'


def with_axes(
    picture: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    xlabel: str = '',
    ylabel: str = '',
    title: str = '',
) -> np.ndarray:
    """Draw axes around a picture of equal cells.

    Args:
        picture: [H, W, C] uint8 of R x K cells, such as that of `image_grid`; its
            pixels are repeated, not smoothed, if it is tiny.
        rows: R labels of the rows, from the top; none for no ticks.
        columns: K labels of the columns.
        xlabel: what differs from column to column.
        ylabel: what differs from row to row.
        title: the title.

    Returns:
        [H', W', 3] uint8.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = _enlarge(picture[None], math.ceil(480 / max(picture.shape[:2])))[0]
    height, width = picture.shape[:2]
    # In pixels, so that each pixel of the picture is one of the figure's too.
    left, right, below, above = 110, 30, 60, 40
    total = width + left + right, height + below + above
    figure = Figure(figsize=(total[0] / 100, total[1] / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((
        left / total[0], below / total[1], width / total[0], height / total[1]
    ))
    shown = picture.repeat(3, axis=2) if picture.shape[2] == 1 else picture
    axes.imshow(shown, interpolation='nearest', extent=(0, width, height, 0))

    def centres(num: int, side: int) -> np.ndarray:
        return (np.arange(num) + 0.5) * side / max(num, 1)

    axes.set_xticks(centres(len(columns), width), columns, fontsize=8)
    axes.set_yticks(centres(len(rows), height), rows, fontsize=8)
    axes.tick_params(length=0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def interpolations(images: np.ndarray, num: int, name: str) -> np.ndarray:
    """Draw what is decoded on the way from one code to another, a row for each pair.

    Args:
        images: [R * num, H, W, C] integer in [0, 256) or float in [0, 1].
        num: images per row, evenly spaced and with both ends.
        name: what lies between the ends, such as 'code'.

    Returns:
        [H', W', 3] uint8.
    """
    return with_axes(
        image_grid(images, columns=num),
        rows=[str(row) for row in range(len(images) // num)],
        columns=[f'{100 * share:.0f}' for share in np.linspace(0, 1, num)],
        xlabel=f'share of the way from the first {name} to the second (%)',
        ylabel='pair', title=f'Images on the way from one {name} to another',
    )


def reconstructions(
    x: np.ndarray, x_hat: np.ndarray, *, columns: int = 10, num_values: int = 256
) -> np.ndarray:
    """Lay out each row of inputs above its reconstructions.

    Args:
        x: [N, H, W, C] inputs, integer in [0, num_values) or float in [0, 1].
        x_hat: [N, H, W, C] reconstructions, integer or float independently of x.
        columns: pairs per row.
        num_values: V, the number of values of pixels in integer images.

    Returns:
        [H', W', C] uint8, with rows labelled.

    Raises:
        ValueError: the shapes differ or are not [N, H, W, C], or there is no image or
            no column.
    """
    if np.shape(x) != np.shape(x_hat) or np.ndim(x) != 4 or not len(x):
        raise ValueError(f'need two [N, H, W, C], got {np.shape(x)}, {np.shape(x_hat)}')
    if columns < 1:
        raise ValueError(f'need at least 1 column, got {columns}')
    pair = np.stack([to_uint8(image, num_values=num_values) for image in (x, x_hat)])
    columns = min(columns, pair.shape[1])
    blank = -pair.shape[1] % columns
    fill = ((0, 0), (0, blank), (0, 0), (0, 0), (0, 0))
    pair = np.pad(pair, fill, constant_values=_BORDER)
    rows = pair.reshape(2, -1, columns, *pair.shape[2:]).swapaxes(0, 1)
    rows = rows.reshape(-1, *rows.shape[2:])
    return labelled_rows(rows, ['input', 'output'] * (len(rows) // 2))


def save_png(
    path: str | os.PathLike[str], image: np.ndarray, *, min_side: int = 320
) -> None:
    """Write a picture atomically, enlarged if it is tiny; see `to_png`."""
    _write(Path(path), to_png(image, min_side=min_side))


def to_png(image: np.ndarray, *, min_side: int = 320) -> bytes:
    """Return a picture as a PNG file, enlarged if it is tiny.

    Pixels are repeated by the least integer factor that brings the longer side up to
    min_side, without smoothing: 8x8 digits can be seen, and their pixels counted.

    Args:
        image: [H, W, C] uint8 with C = 1 or 3.
        min_side: the least longer side in pixels; 1 writes the picture as it is.

    Raises:
        ValueError: the image is not uint8 [H, W, 1] or [H, W, 3].
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(
            f'image must be uint8 [H, W, 1 or 3], got {image.dtype} {image.shape}'
        )
    factor = math.ceil(min_side / max(image.shape[:2]))
    image = _enlarge(image[None], factor)[0]
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(
        buffer, format='PNG'
    )
    return buffer.getvalue()


def curves(
    metrics: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    name: str = 'loss',
    unit: str = '',
) -> None:
    """Draw one metric of a run against the step, one line per split.

    Args:
        metrics: a run's metrics.jsonl: objects with step, split and numbers.
        path: PNG file to write.
        name: the metric.
        unit: the unit of the metric, for the label of the vertical axis.

    Raises:
        UserError: the file is missing, damaged, or never has that metric.
    """
    # The import takes half a second, which a run without curves should not pay.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    splits: dict[str, list[tuple[float, float]]] = {}
    for row in _read_rows(Path(metrics)):
        if isinstance(row.get(name), (int, float)) and {'split', 'step'} <= row.keys():
            splits.setdefault(row['split'], []).append((row['step'], row[name]))
    if not splits:
        raise UserError(f'{metrics} has no {name!r}: name a metric that it has.')
    figure = Figure(figsize=(6, 4), layout='constrained')
    axes = figure.subplots()
    colours = {'train': 'C0', 'validation': 'C1', 'test': 'C3'}
    for split, points in splits.items():
        # A single evaluation needs a marker: its line has no length.
        marker = 'o' if len(points) < 20 else ''
        axes.plot(
            *zip(*points), label=split, marker=marker, markersize=3,
            color=colours.get(split),
        )
    words = name.replace('_', ' ').replace('frechet', 'Frechet')
    axes.set_title(f'{words[0].upper()}{words[1:]} during training')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel('training step')
    axes.set_ylabel(f'{words} ({unit})' if unit else words)
    axes.grid(alpha=0.3)
    axes.legend(title='split')
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=120)
    _write(Path(path), buffer.getvalue())


def fan_charts(x: np.ndarray, draws: np.ndarray, num_values: int = 256) -> np.ndarray:
    """Draw time series with the quantiles of their forecasts.

    Args:
        x: [N, T] series, N even.
        draws: [N, K, h] continuations of all but their last h values.
        num_values: V; the axis of values goes from 0 to V - 1.

    Returns:
        [H', W', 3] uint8: for each series a panel with the truth, the median of the
        draws, and the bands between their 5 and 95 % and 25 and 75 % quantiles.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.4 * len(x) / 2), layout='constrained')
    canvas = FigureCanvasAgg(figure)
    future = np.arange(x.shape[1] - draws.shape[2], x.shape[1])
    panels = figure.subplots(len(x) // 2, 2, sharex=True, sharey=True, squeeze=False)
    for panel, series, drawn in zip(panels.flat, x, draws):
        quantiles = np.quantile(drawn, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0)
        panel.fill_between(
            future, quantiles[0], quantiles[4], color='C0', alpha=0.2, lw=0,
            label='5 to 95 %',
        )
        panel.fill_between(
            future, quantiles[1], quantiles[3], color='C0', alpha=0.4, lw=0,
            label='25 to 75 %',
        )
        panel.plot(future, quantiles[2], color='C0', label='median')
        panel.plot(series, color='black', lw=1, label='truth')
        panel.set_ylim(0, num_values - 1)
        panel.margins(x=0)
    figure.supxlabel('time (steps of the series)')
    figure.supylabel(f'value (level, 0 to {num_values - 1})')
    lines = panels[0, 0].get_legend_handles_labels()
    figure.legend(*lines, loc='outside upper center', ncols=4)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def scatter(
    x: np.ndarray,
    samples: np.ndarray,
    *,
    names: tuple[str, str] = ('data', 'samples'),
    axes: tuple[str, str] = ('x1', 'x2'),
    labels: np.ndarray | None = None,
) -> np.ndarray:
    """Draw samples in the plane over the points whose distribution they should have.

    Args:
        x: [N, 2] points of the reference distribution.
        samples: [M, 2] samples.
        names: the names of x and the samples in the legend.
        axes: the labels of both axes.
        labels: [M] classes that set the colours of the samples; None for one colour.

    Returns:
        [H', W', 3] uint8: x in grey, the samples in colour.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5.4), layout='constrained')
    canvas = FigureCanvasAgg(figure)
    panel = figure.subplots()
    panel.scatter(x[:, 0], x[:, 1], s=14, color='0.8', lw=0, label=names[0])
    colours: dict[str, Any] = {'color': 'C0'}
    if labels is not None:
        colours = {'c': labels, 'cmap': 'tab10'}
    panel.scatter(
        samples[:, 0], samples[:, 1], s=8, lw=0, label=names[1], **colours
    )
    panel.set_aspect('equal')
    panel.set_xlabel(axes[0])
    panel.set_ylabel(axes[1])
    figure.legend(loc='outside upper center', ncols=2, markerscale=2)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _flatten_rows(rows: np.ndarray) -> np.ndarray:
    """Return [R, K, H, W, C] as [R * K, H, W, C]."""
    rows = np.asarray(rows)
    if rows.ndim != 5:
        raise ValueError(f'need [rows, columns, H, W, C], got {rows.shape}')
    return rows.reshape(-1, *rows.shape[2:])


def _enlarge(images: np.ndarray, factor: int) -> np.ndarray:
    """Repeat every pixel of [N, H, W, C] factor times along both axes."""
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def _read_rows(path: Path) -> list[dict]:
    """Read JSON lines; skip an unfinished last line, which is still being written."""
    try:
        lines = path.read_text().split('\n')[:-1]
        rows = [json.loads(line) for line in lines if line.strip()]
        return [row for row in rows if isinstance(row, dict)]
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}.') from error
    except ValueError as error:
        raise UserError(f'{path} is damaged: {error}.') from error


def _write(path: Path, data: bytes) -> None:
    """Write a file atomically, so that it never exists half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(str(path)) as new:
        Path(new).write_bytes(data)
