"""What is said of a path that was given in the place of the name of a set."""

import pathlib
import shutil

import pytest

from gm_jax.data import hints, sources
from gm_jax.errors import UserError


@pytest.fixture(name='root')
def make_root(tfds_set, tmp_path, monkeypatch) -> pathlib.Path:
    """Return a directory with files and directories of all kinds."""
    monkeypatch.chdir(tmp_path)
    for name in (
        'pics/a.PNG', 'my pics/x/y/b.jpeg', '[1]/c.jpg', 'texts/a.txt', 'one.npy',
        'there/train-images-idx3-ubyte.gz', 'a.NPZ', 'd.npz/e',
        'other/dataset_info.json',
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / 'empty').mkdir()
    tfds_set('mnist')
    (tmp_path / 'my-link').symlink_to(tmp_path / 'mnist')
    return tmp_path


@pytest.mark.parametrize('spec, meant', [
    ('pics', 'images:pics'), ('./pics/', 'images:./pics/'),
    ('pics/a.PNG', 'images:pics'), ('my pics', "'images:my pics'"),
    ('[1]', "'images:[1]'"), ('there', 'idx:there'),
    ('there/train-images-idx3-ubyte.gz', 'idx:there'), ('mine.npz', 'npz:mine.npz'),
    ('a.NPZ', 'npz:a.NPZ'), ('./mnist', 'mnist --data_dir={root}'),
    ('mnist/3.0.1', 'mnist --data_dir={root}'), ('my-link', 'mnist --data_dir={root}'),
])
def test_a_path_in_the_place_of_a_set(spec, meant, root):
    """Catch a name of TFDS that is guessed where a folder of pictures was meant."""
    if spec == 'mnist/3.0.1':
        spec = str(next(path.parent for path in root.glob('mnist/*/dataset_info.json')))
    with pytest.raises(UserError) as error:
        sources.load(spec, data_dir=str(root / 'nowhere'))
    meant = meant.format(root=root)
    assert str(error.value).endswith(f': did you mean --dataset={meant}?')


@pytest.mark.parametrize(
    'spec', ['empty', 'texts', 'one.npy', 'd.npz', 'none', 'other']
)
def test_nothing_is_guessed(spec, root):
    """Catch advice that ends in another error."""
    assert hints.for_path(spec) == ''


def test_a_directory_of_several_sets(root, tfds_set):
    """Catch one set that is chosen for the user, or the pictures of none."""
    tfds_set('other_set')
    assert hints.for_path(str(root)) == (
        f': did you mean --data_dir={root} with one of --dataset=mnist, '
        f'--dataset=other_set?'
    )
    # A set that lies where no name would find it.
    shutil.move(root / 'mnist', root / 'renamed')
    assert hints.for_path('renamed') == ''
