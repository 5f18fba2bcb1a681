"""Tiny sets in files, made anew for each test."""

import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from gm_jax.data import tfds_writer


@pytest.fixture
def images() -> np.ndarray:
    """Forty 6x5 colour images of noise."""
    shape = 40, 6, 5, 3
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def labels() -> np.ndarray:
    """Their labels: all of 0, 1 and 2."""
    return np.random.default_rng(1).integers(0, 3, 40).astype(np.int32)


@pytest.fixture
def tfds_set(tmp_path, images, labels) -> Callable[..., pathlib.Path]:
    """Write 30 + 10 images as a prepared set, 16 a shard; return its directory."""

    def write(name='tiny', parts=None, **kwargs):
        if parts is None:
            halves = {'train': slice(30), 'test': slice(30, 40)}
            parts = {key: [(images[at], labels[at])] for key, at in halves.items()}
        kwargs = {'image_shape': (6, 5, 3), 'num_classes': 3, **kwargs}
        return pathlib.Path(
            tfds_writer.write(str(tmp_path), name, parts, shard_size=16, **kwargs)
        )

    return write


@pytest.fixture
def save_image(tmp_path) -> Callable[..., pathlib.Path]:
    """Save an array as tmp_path / name, making the folders."""

    def save(name, array, **kwargs):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path, **kwargs)
        return path

    return save
