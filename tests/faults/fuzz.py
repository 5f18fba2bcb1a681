"""Feeds the readers what no writer wrote; anything but a UserError is a find.

    pip install atheris
    python -m tests.faults.fuzz npz -max_total_time=600

The first argument is idx, npz, image, config or setting; the others are libFuzzer's. It
starts from a few good files and from what was found before, which lies in
tests/faults/corpus/NAME and is tried again by every run of the tests.
"""

import dataclasses
import gzip
import io
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable

import numpy as np
from PIL import Image

from gm_jax.data import decoding, readers, splits
from gm_jax.errors import UserError
from gm_jax.training import settings

CORPUS = pathlib.Path(__file__).parent / 'corpus'


def _read_idx(path: str) -> None:
    """Read the file as images, and as a compressed file of labels."""
    with tempfile.TemporaryDirectory() as directory:
        data = pathlib.Path(path).read_bytes()
        for name in ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte.gz'):
            pathlib.Path(directory, name).write_bytes(data)
            for part, size in (('train', 3), ('t10k', 2)):
                labels = np.full(size, 1, np.uint8).tobytes()
                head = bytes((0, 0, 8, 1, 0, 0, 0, size))
                if part not in name:
                    pathlib.Path(directory, f'{part}-labels-idx1-ubyte').write_bytes(
                        head + labels
                    )
        readers.idx(directory)


def _read_image(path: str) -> None:
    header = decoding.read_header(path)
    if header.height * header.width > 2**20:
        return  # good, but slow
    shape = (8, 8, header.num_channels)
    decoding.decode(pathlib.Path(path).read_bytes(), shape, 8, path)
    decoding.opaque_pixels(path)


def _read_setting(path: str) -> None:
    """Read the file as the JSON of one setting, which its first byte chooses."""
    data = pathlib.Path(path).read_bytes()
    names = [f.name for f in dataclasses.fields(settings.Config)]
    name = names[data[0] % len(names)] if data else 'seed'
    text = b'{"%s": %s}' % (name.encode(), data[1:])
    pathlib.Path(path).write_bytes(text)
    settings.load(path, settings.Config)


TARGETS: dict[str, Callable[[str], object]] = {
    'idx': _read_idx,
    'npz': readers.npz,
    'image': _read_image,
    'config': lambda path: settings.load(path, settings.Config),
    'setting': _read_setting,
}


def good_files(name: str) -> list[bytes]:
    """Return files that are as they should be, to start from."""
    images = np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4)
    if name == 'config':
        return [settings.to_json(settings.Config()).encode(), b'{}']
    if name == 'setting':
        return [b'a1', b'b"cosine"', b'c1.5e300', b'dtrue', b'e[1]', b'f-12']
    if name == 'idx':
        head = bytes((0, 0, 8, 3)) + np.array(images.shape, '>u4').tobytes()
        return [head + images.tobytes(), gzip.compress(head + images.tobytes())]
    if name == 'npz':
        files = []
        labels = np.arange(20) % 3
        own = {
            'train': images, 'train_labels': labels, 'validation': images,
            'validation_labels': labels, 'class_names': ['a', 'b', 'c'],
        }
        for arrays in ({'images': images, 'labels': 5 * labels}, own):
            for save in (np.savez, np.savez_compressed):
                file = io.BytesIO()
                save(file, **arrays)
                files.append(file.getvalue())
        return files
    files, exif = [], Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    for mode in ('L', 'RGB', 'P', '1', 'LA', 'RGBA'):
        for kind in ('PNG', 'JPEG') if mode in ('L', 'RGB') else ('PNG',):
            picture = Image.fromarray(images[0].repeat(3, 0)).convert(mode)
            more = {'transparency': 1} if mode in ('L', 'P') and kind == 'PNG' else {}
            file = io.BytesIO()
            picture.save(file, kind, exif=exif, **more)
            files.append(file.getvalue())
    return files


def try_one(name: str, data: bytes) -> None:
    """Read one file; raise what the reader raises, but for a UserError."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, 'file')
        with open(path, 'wb') as file:
            file.write(data)
        try:
            TARGETS[name](path)
        except UserError as error:
            assert '\n' not in str(error).strip(), 'not a sentence'


def main(argv: list[str]) -> None:
    """Fuzz one reader."""
    import atheris

    name, *rest = argv
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    for module in (readers, decoding, splits, settings):
        for value in list(vars(module).values()):
            if getattr(value, '__module__', '') == module.__name__ and hasattr(
                value, '__code__'
            ):
                atheris.instrument_func(value)
    with tempfile.TemporaryDirectory() as directory:
        for number, data in enumerate(good_files(name)):
            pathlib.Path(directory, str(number)).write_bytes(data)
        found = f'{corpus}/'
        atheris.Setup(
            [sys.argv[0], directory, str(corpus), *rest, f'-artifact_prefix={found}',
             '-rss_limit_mb=8000', '-max_len=4096'],
            lambda data: try_one(name, data),
        )
        atheris.Fuzz()


if __name__ == '__main__':
    main(sys.argv[1:])
