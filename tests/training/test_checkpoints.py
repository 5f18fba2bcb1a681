"""What was saved comes back to the bit, or an older checkpoint does and says so."""

import json
import pathlib
import re
import shutil

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gm_jax.errors import UserError
from gm_jax.training import checkpoints, sealed, train_state

# One object, since states with different optimizers are different trees.
TX = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1, 9))
)


def _state(seed: int, *, ema: bool = True, batch_norm: bool = True, width: int = 50):
    """Return a state with a number in every leaf, after a step of a chain."""
    rng = np.random.default_rng(seed)
    params = {
        'dense': {
            'kernel': jnp.asarray(rng.normal(size=(40, width)), jnp.float32),
            'bias': jnp.asarray(rng.normal(size=width), jnp.float32),
        }
    }
    # flax.linen.SpectralNorm has names with a / in them.
    stats = {'norm': {
        name: jnp.asarray(rng.normal(size=width), jnp.float32)
        for name in ('mean', 'kernel/sigma')
    }}
    state = train_state.create(
        params, TX, model_state=stats if batch_norm else None, ema=ema
    )
    return state.apply_gradients(grads=params)


def _save(directory, steps, best=None) -> None:
    for step in steps:
        note = {'place': step, 'best_step': best}
        checkpoints.save(str(directory), step, _state(step), note)


def _restore(directory, template=None, which='last'):
    return checkpoints.restore(str(directory), template or _state(0), which)


def _names(directory) -> set[str]:
    return {path.name for path in (directory / 'checkpoints').iterdir()}


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in directory.rglob('*') if path.is_file())


def _largest_file(directory: pathlib.Path) -> pathlib.Path:
    return max(_files(directory), key=lambda path: path.stat().st_size)


def _same(found, step: int) -> bool:
    chex.assert_trees_all_equal(found.state, _state(step))
    return found.step == step and found.note['place'] == step


@pytest.mark.parametrize('ema', [False, True])
@pytest.mark.parametrize('batch_norm', [False, True])
def test_round_trip(tmp_path, ema, batch_norm):
    """Catch a leaf that is dropped, cast or exchanged, and empty containers."""
    state = _state(1, ema=ema, batch_norm=batch_norm)
    assert _restore(tmp_path, state) is None
    note = {'sums': {'loss': 0.1 + 0.2, 'kl': float('nan')}, 'count': 3, 'best': None}
    checkpoints.save(str(tmp_path), 7, state, note)
    # It is there for all to see: nothing is still being written.
    assert (tmp_path / 'checkpoints' / '7').is_dir()
    found = _restore(tmp_path, _state(2, ema=ema, batch_norm=batch_norm))
    assert (found.step, found.warnings, found.unusable) == (7, [], [])
    np.testing.assert_equal(found.note, note)
    chex.assert_trees_all_equal_shapes_and_dtypes(found.state, state)
    chex.assert_trees_all_equal(found.state, state)
    # What was restored has to be good for another step.
    chex.assert_trees_all_equal(
        found.state.apply_gradients(grads=state.params).params,
        state.apply_gradients(grads=state.params).params,
    )


def test_best_and_last_are_kept(tmp_path):
    """Catch a disk that fills, and the best checkpoint removed."""
    _save(tmp_path, [1, 2])
    _save(tmp_path, range(3, 6), best=2)
    assert _names(tmp_path) == {'2', '4', '5'}
    assert _same(_restore(tmp_path), 5)
    assert _same(_restore(tmp_path, which='best'), 2)
    _save(tmp_path, [6], best=6)
    assert _names(tmp_path) == {'5', '6'}


def test_no_best_is_a_sentence(tmp_path):
    """Catch another checkpoint in place of the best."""
    assert _restore(tmp_path, which='best') is None
    _save(tmp_path, [1])
    with pytest.raises(UserError, match='no evaluation has had a finite loss'):
        _restore(tmp_path, which='best')


def _damaged(content: bytes, how: str) -> bytes:
    if how == 'truncated':
        return content[:len(content) // 2]
    if how == 'empty':
        return b''
    place = len(content) // 3
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1:]


@pytest.mark.parametrize('how', [
    'truncated', 'flipped', pytest.param('empty', marks=pytest.mark.long),
    pytest.param('removed', marks=pytest.mark.long),
])
def test_whatever_file_is_damaged(tmp_path, how):
    """Catch a number that is read from a damaged file, and an exception that ends it.

    A file of which nothing is read may be damaged without a word.
    """
    _save(tmp_path, [1, 2], best=2)
    noticed = set()
    for path in _files(tmp_path / 'checkpoints' / '2'):
        content = path.read_bytes()
        path.unlink()
        if how != 'removed':
            path.write_bytes(_damaged(content, how))
        found = _restore(tmp_path)
        assert _same(found, 1 if found.warnings else 2), path
        assert found.unusable == ([2] if found.warnings else [])
        if found.warnings:
            noticed.add(path.parent.name)
            assert 'checkpoints/2 cannot be used' in found.warnings[0]
            with pytest.raises(UserError):
                _restore(tmp_path, which='best')
        path.write_bytes(content)
    assert {'note', 'state', 'd'} <= noticed
    assert _same(_restore(tmp_path), 2)


def test_flipped_bit_is_never_trained_on(tmp_path):
    """Catch damage that decodes to other numbers."""
    _save(tmp_path, [1, 2])
    path = _largest_file(tmp_path / 'checkpoints' / '2' / 'state')
    content = path.read_bytes()
    noticed = 0
    for place in np.linspace(0, len(content) - 1, 8).astype(int):
        damaged = bytearray(content)
        damaged[place] ^= 16
        path.write_bytes(bytes(damaged))
        found = _restore(tmp_path)
        assert _same(found, 1 if found.warnings else 2)
        noticed += len(found.warnings)
    assert noticed >= 4


def test_every_digit_of_the_note_is_sealed(tmp_path):
    """Catch a loss, a best step or a count that was changed by hand or by a disk."""
    _save(tmp_path, [1, 2], best=2)
    path = tmp_path / 'checkpoints' / '2' / 'note' / 'metadata'
    text = path.read_text()
    digits = [match.start() for match in re.finditer(r'\d', text)]
    assert len(digits) > 50
    for place in digits:
        changed = str((int(text[place]) + 1) % 10)
        path.write_text(text[:place] + changed + text[place + 1:])
        assert _same(_restore(tmp_path), 1), text[place - 9:place + 9]
    path.write_text(json.dumps(json.loads(text), indent=1))
    assert _same(_restore(tmp_path), 2)


def test_other_numbers_in_whole_files_are_noticed(tmp_path, monkeypatch):
    """Catch a checksum that is not compared."""
    _save(tmp_path, [1])
    with monkeypatch.context() as patch:
        patch.setattr(sealed, '_checksum', lambda arrays: 12345)
        _save(tmp_path, [2])
    found = _restore(tmp_path)
    assert _same(found, 1)
    assert 'checkpoints/2 cannot be used (its checksum' in found.warnings[0]


@pytest.mark.parametrize('name', ['9', '999999999999', '2'])
def test_a_renamed_checkpoint_is_not_taken_for_another(tmp_path, name):
    """Catch a step read from a directory's name, and steps that do not fit 32 bits."""
    _save(tmp_path, [1, 3])
    base = tmp_path / 'checkpoints'
    shutil.copytree(base / '1', base / name)
    shutil.rmtree(base / '3')
    found = _restore(tmp_path)
    assert _same(found, 1) and found.unusable == [int(name)]
    assert 'it is the checkpoint of step 1' in found.warnings[0]
    checkpoints.set_aside(str(tmp_path), found.unusable)
    _save(tmp_path, [2, int(name)])
    assert _same(_restore(tmp_path), int(name))


def test_what_is_no_checkpoint_is_passed_over(tmp_path):
    """Catch directories beyond a limit, files, and names that are almost steps."""
    _save(tmp_path, [1])
    base = tmp_path / 'checkpoints'
    for step in range(50, 80):
        (base / str(step)).mkdir()
    (base / '99').write_text('')
    for name in ('02', '-3', '4.5', 'notes', '٣', '9' * 200):
        (base / name).mkdir()
    found = _restore(tmp_path)
    assert _same(found, 1) and len(found.unusable) == 31
    # Not a line for each of them.
    assert len(found.warnings) == 4 and '28 more' in found.warnings[-1]
    checkpoints.set_aside(str(tmp_path), found.unusable)
    _save(tmp_path, [2])
    assert _same(_restore(tmp_path), 2)


def test_steps_after_a_damaged_one_are_saved_again(tmp_path):
    """Catch a run that saves nothing until it has passed the damaged checkpoint."""
    _save(tmp_path, [1, 3])
    _largest_file(tmp_path / 'checkpoints' / '3' / 'state').write_bytes(b'')
    found = _restore(tmp_path)
    checkpoints.set_aside(str(tmp_path), found.unusable)
    assert len(list((tmp_path / 'checkpoints').glob('damaged_3_*'))) == 1
    _save(tmp_path, [2])
    assert _same(_restore(tmp_path), 2)
    _save(tmp_path, [3])
    found = _restore(tmp_path)
    assert _same(found, 3) and not found.warnings


@pytest.mark.parametrize('template', [
    dict(width=51), dict(ema=False), dict(batch_norm=False),
])
def test_another_model_is_refused(tmp_path, template):
    """Catch numbers of another model that fit by chance, and a lost checkpoint."""
    _save(tmp_path, [1, 2])
    with pytest.raises(UserError, match='checkpoints/2 .*checkpoints/1 .* --workdir'):
        _restore(tmp_path, _state(0, **template))
    assert _same(_restore(tmp_path), 2)


def test_best_that_is_damaged_is_not_replaced_in_silence(tmp_path):
    """Catch an evaluation of another checkpoint than the one that was named."""
    _save(tmp_path, [1, 2, 3], best=1)
    _largest_file(tmp_path / 'checkpoints' / '1' / 'state').write_bytes(b'')
    with pytest.raises(UserError, match='checkpoints/1 cannot be used.* is the best'):
        _restore(tmp_path, which='best')


@pytest.mark.parametrize('which', ['last', 'best'])
def test_training_may_go_on_beside_a_reader(tmp_path, monkeypatch, which):
    """Catch a checkpoint that was replaced taken for a damaged one."""
    _save(tmp_path, [1, 2], best=2)
    read, left = sealed.read, [[3, 4], [5, 6]]

    def overtaken(path, step, template):
        if left:
            new = left.pop(0)
            _save(tmp_path, new, best=new[-1])
        return read(path, step, template)

    monkeypatch.setattr(sealed, 'read', overtaken)
    found = _restore(tmp_path, which=which)
    assert _same(found, 6) and not found.warnings


def test_killed_during_a_write(tmp_path):
    """Catch a half-written checkpoint that is read, or that blocks the next one."""
    _save(tmp_path, [1, 2])
    base = tmp_path / 'checkpoints'
    # Orbax writes under this name and renames what is complete.
    half = shutil.copytree(base / '2', base / '3.orbax-checkpoint-tmp')
    _largest_file(half / 'state').write_bytes(b'')
    shutil.copytree(half, base / '1.removed')
    shutil.copytree(base / '2', base / '2.backup')  # somebody keeps it
    assert _same(_restore(tmp_path), 2)
    _save(tmp_path, [3])
    assert _same(_restore(tmp_path), 3)
    _save(tmp_path, [4])
    assert _names(tmp_path) == {'2.backup', '3', '4'}
