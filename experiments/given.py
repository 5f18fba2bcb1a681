"""The images that --given names; not an experiment itself.

`config` is that of an autoregressive model.
"""

from typing import Any

import jax
import numpy as np

from gm_jax.data import binarize, readers, sources
from gm_jax.errors import UserError


def partial_images(
    config: Any, image_shape: tuple[int, int, int], num_values: int, *,
    masked: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads the partial images of --given: (int32 [N, H, W, C], bool [N, H, W, C]).

    Without a path one image of which nothing is known; all, where they are not
    `masked`.

    Raises:
        UserError: the file cannot be read, or its arrays do not fit the model.
    """
    path = config.given
    if not path:
        return np.zeros((1, *image_shape), np.int32), np.zeros((1, *image_shape), bool)
    arrays = readers.read_npz(path, flag='given')
    if not masked and 'images' in arrays:
        arrays['mask'] = np.ones(image_shape[:2], bool)
    if not {'images', 'mask'} <= set(arrays):
        names = "arrays 'images' and 'mask'" if masked else "array 'images'"
        raise UserError(f'--given={path} must hold the {names}.')
    images, mask = arrays['images'], arrays['mask']
    if images.shape[1:] != image_shape or not len(images):
        raise UserError(
            f'--given={path}: images are {list(images.shape)}, the model makes '
            f'[N, {", ".join(map(str, image_shape))}].'
        )
    if len(images) > config.num_samples:
        raise UserError(
            f'--given={path} has {len(images)} images: --num_samples must be as many, '
            f'or more, not {config.num_samples}.'
        )
    if mask.shape == image_shape[:2]:
        mask = np.broadcast_to(mask[None, :, :, None], images.shape)
    if mask.shape != images.shape:
        raise UserError(
            f'--given={path}: mask is {list(mask.shape)}; it must be '
            f'{list(image_shape[:2])} or {list(images.shape)}.'
        )
    if mask.dtype.kind not in 'buif' or not np.isin(mask, (0, 1)).all():
        raise UserError(f'--given={path}: mask must be of 0 and 1, or of booleans.')
    mask, whole = mask.astype(bool), np.issubdtype(images.dtype, np.integer)
    if not whole or images[mask].min(initial=0) < 0 or (
        images[mask].max(initial=0) >= num_values
    ):
        raise UserError(
            f'--given={path}: images must be integers from 0 to {num_values - 1}, the '
            f'values of the model.'
        )
    return np.where(mask, images, 0).astype(np.int32), np.array(mask)


def whole_images(
    config: Any, data: sources.ImageSet, num_values: int, missing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns images of which a part is given, as `partial_images` does.

    Those of --given, or the first of the test set.

    Args:
        config: the settings.
        data: the image set.
        num_values: V.
        missing: [H, W] bool, true where a pixel is not known.

    Raises:
        UserError: there are neither.
    """
    if config.given:
        images, _ = partial_images(
            config, data.image_shape, num_values, masked=False
        )
    elif 'test' in data.splits:
        test = data.splits['test']
        rows = np.arange(min(config.num_samples, len(test)))
        rngs = jax.random.split(jax.random.key(config.seed), len(rows))
        x = binarize.integers(rngs, test.fetch(rows)['image'], data)
        images = np.asarray(x, np.int32)
    else:
        raise UserError(
            f'--task={config.task} needs --given=FILE: an npz with the images, of '
            f'which the network is given its part.'
        )
    return images, np.broadcast_to(~missing[..., None], images.shape)
