"""What fuzzing has found is tried again; so are good files, cut and changed."""

import zipfile

import numpy as np
import pytest

from gm_jax.data import readers
from gm_jax.errors import UserError
from tests.faults import fuzz

FOUND = [
    (path.parent.name, path.name) for path in sorted(fuzz.CORPUS.glob('*/*'))
]


@pytest.mark.parametrize('target, name', FOUND)
def test_what_was_found(target, name):
    """Catch the errors of old coming back."""
    fuzz.try_one(target, (fuzz.CORPUS / target / name).read_bytes())


@pytest.mark.parametrize('target', fuzz.TARGETS)
def test_good_files_damaged(target):
    """Catch an error other than a sentence for a file that is cut or changed."""
    rng = np.random.default_rng(0)
    for data in fuzz.good_files(target):
        fuzz.try_one(target, data)
        for _ in range(20):
            changed = bytearray(data[:rng.integers(1, len(data) + 1)])
            for place in rng.integers(0, len(changed), 3):
                changed[place] = rng.integers(256)
            fuzz.try_one(target, bytes(changed))


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    """Catch an archive of a few kilobytes being unpacked to 12 GiB."""
    path = tmp_path / 'bomb.npz'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f'{number}.npy', bytes(2**20))
    # What the directory of the archive claims of each, its last mention of the size.
    data, size = path.read_bytes(), (2**20).to_bytes(4, 'little')
    start = data.index(b'PK\1\2')
    claimed = data[start:].replace(size, (2**32 - 2).to_bytes(4, 'little'))
    path.write_bytes(data[:start] + claimed)
    monkeypatch.setattr(readers, '_MAX_BYTES', 2**33)
    with pytest.raises(UserError, match='claims 12884901882 bytes'):
        readers.npz(str(path))
