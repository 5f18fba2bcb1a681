"""Attribute arithmetic on the codes of a generator.

bold 3s - thin 3s + a thin 7 should be a bold 7, as man with glasses - man + woman is a
woman with glasses in Radford et al. 2016, sec. 6.3.2, https://arxiv.org/abs/1511.06434.
The attribute is the brightness, compared with the median of the class. It is measured,
not learned, and exists also in sets that have only class labels. What must not change
is the class, which a classifier predicts.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax import plotting
from gm_jax.sampling import latent

__all__ = ['Analogies', 'brightness', 'compare', 'draw_analogies', 'medians']

# Codes per mean (even), and analogies per pair of classes. With 3 codes, as in the
# paper, half of a DCGAN's digits change class; with 10, a third. The last term of an
# analogy is a single code: a mean of many z is nearer to 0 than any z that a generator
# was trained on.
_EXEMPLARS, _REPEATS = 10, 10


class Analogies(NamedTuple):
    """Rows of codes for a - b + c, with the class that each result should have.

    Attributes:
        a: [T, E] bright codes of one class.
        b: [T, E] dark codes of that class.
        c: [T, 1] dark codes of another class.
        label: [T] that other class.
    """

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    label: np.ndarray


def brightness(images: np.ndarray) -> np.ndarray:
    """Return the mean of the pixels of each image, [N] in [0, 255]."""
    return images.mean(axis=(1, 2, 3), dtype=np.float64)


def medians(images: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the median brightness of each class, [L]; NaN for one that is absent."""
    bright = brightness(images)
    of_class = [bright[labels == label] for label in range(num_classes)]
    return np.array([np.median(x) if len(x) else np.nan for x in of_class])


def draw_analogies(
    is_bright: np.ndarray, labels: np.ndarray, num_classes: int,
    rng: np.random.Generator,
) -> Analogies:
    """Draw the same number of analogies from every class to every other.

    Args:
        is_bright: [N] bool.
        labels: [N] classes.
        num_classes: L; classes without enough bright or dark images are left out.
        rng: chooses the rows.

    Returns:
        T = 10 K (K - 1) analogies of K classes, in random order.
    """
    kinds = {
        (label, bright): np.flatnonzero((labels == label) & (is_bright == bright))
        for label in range(num_classes) for bright in (True, False)
    }
    whole = [
        label for label in range(num_classes)
        if min(len(kinds[label, bright]) for bright in (True, False)) >= _EXEMPLARS
    ]
    pairs = [(s, t) for s in whole for t in whole if s != t] * _REPEATS
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]

    def rows(num: int, kinds_of_pairs: list[tuple[int, bool]]) -> np.ndarray:
        chosen = [rng.choice(kinds[k], num, replace=False) for k in kinds_of_pairs]
        return np.array(chosen, np.int64).reshape(-1, num)

    return Analogies(
        rows(_EXEMPLARS, [(s, True) for s, _ in pairs]),
        rows(_EXEMPLARS, [(s, False) for s, _ in pairs]),
        rows(1, [(t, False) for _, t in pairs]),
        np.array([t for _, t in pairs], np.int64),
    )


def compare(
    codes: jax.Array,
    decode: Callable[[jax.Array, np.ndarray], np.ndarray],
    classify: Callable[[np.ndarray], np.ndarray],
    num_classes: int,
    labels: np.ndarray | None = None,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Measure whether arithmetic on codes changes the attribute, and only that.

    Args:
        codes: [N, Z], which are decoded to images; the analogies are drawn by the
            classes of these images and their brightness (above the median or not).
        decode: (codes [T, Z], classes [T]) -> uint8 [T, H, W, C].
        classify: uint8 [T, H, W, C] -> classes [T].
        num_classes: L.
        labels: [N] classes that `decode` is given; None if it ignores them.

    Returns:
        (numbers, pictures). The results a - b + c would be dark without the arithmetic;
        the numbers include the share that is bright, the share that has kept its class,
        and the share that is both. As a control there are the same shares where half of
        a and b have changed places, so that their brightness cancels and their other
        differences are as large. The picture has one column per analogy, for at most
        eight; without analogies there is no picture.
    """
    given = np.zeros(len(codes), np.int64) if labels is None else labels
    images = decode(codes, given)
    labels = classify(images) if labels is None else labels
    middle = medians(images, labels, num_classes)
    is_bright = brightness(images) > middle[labels]
    rows = draw_analogies(is_bright, labels, num_classes, np.random.default_rng(0))
    numbers: dict[str, float] = {'analogies': len(rows.label)}
    if not numbers['analogies']:
        return numbers, {}
    a, b, c = (codes[x] for x in rows[:3])
    half = _EXEMPLARS // 2
    mixed = [
        jnp.concatenate([x[:, :half], y[:, half:]], axis=1) for x, y in ((a, b), (b, a))
    ]
    results, combine = {}, jax.vmap(latent.arithmetic)
    for name, pair in (('analogy', (a, b)), ('control', mixed)):
        results[name] = decode(combine(pair[0], pair[1], c), rows.label)
        bright = brightness(results[name]) > middle[rows.label]
        kept = classify(results[name]) == rows.label
        numbers |= {
            f'{name}_attribute': float(bright.mean()),
            f'{name}_class': float(kept.mean()),
            f'{name}_both': float((bright & kept).mean()),
        }
    source = labels[rows.a[:, 0]]
    rows_of_picture = {
        'bright': decode(a.mean(axis=1), source),
        '- dark': decode(b.mean(axis=1), source),
        '+ dark': images[rows.c[:, 0]], '= bright?': results['analogy'],
    }
    return numbers, {'analogies': plotting.labelled_rows(
        np.stack([x[:8] for x in rows_of_picture.values()]), list(rows_of_picture)
    )}
