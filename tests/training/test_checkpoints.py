"""What was saved comes back to the bit, or an older checkpoint does and says so."""

import pathlib
import shutil

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gm_jax.errors import UserError
from gm_jax.training import checkpoints, train_state

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


def _save(directory, steps, losses=None) -> None:
    manager = checkpoints.open_directory(str(directory))
    losses = losses or [None] * len(steps)
    for step, loss in zip(steps, losses):
        checkpoints.save(manager, step, _state(step), {'place': step}, loss=loss)
    manager.close()


def _restore(directory, template=None, which='last'):
    manager = checkpoints.open_directory(str(directory))
    try:
        return checkpoints.restore(manager, template or _state(0), which)
    finally:
        manager.close()


def _largest_file(directory: pathlib.Path) -> pathlib.Path:
    files = [path for path in directory.rglob('*') if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def _same(found, step: int) -> bool:
    chex.assert_trees_all_equal(found.state, _state(step))
    return found.step == step and found.note == {'place': step}


@pytest.mark.parametrize('ema', [False, True])
@pytest.mark.parametrize('batch_norm', [False, True])
def test_round_trip(tmp_path, ema, batch_norm):
    """Catch a leaf that is dropped, cast or exchanged, and empty containers."""
    state = _state(1, ema=ema, batch_norm=batch_norm)
    manager = checkpoints.open_directory(str(tmp_path))
    assert checkpoints.restore(manager, state) is None
    sums = {'loss': 0.1 + 0.2, 'kl': float('nan')}
    checkpoints.save(manager, 7, state, {'sums': sums, 'count': 3})
    # It is there for all to see: nothing is still being written.
    assert (tmp_path / 'checkpoints' / '7').is_dir()
    template = _state(2, ema=ema, batch_norm=batch_norm)
    found = checkpoints.restore(manager, template)
    manager.close()
    assert (found.step, found.warnings) == (7, [])
    np.testing.assert_equal(found.note, {'sums': sums, 'count': 3})
    chex.assert_trees_all_equal_shapes_and_dtypes(found.state, state)
    chex.assert_trees_all_equal(found.state, state)
    # What was restored has to be good for another step.
    chex.assert_trees_all_equal(
        found.state.apply_gradients(grads=state.params).params,
        state.apply_gradients(grads=state.params).params,
    )


def test_best_and_last_are_kept(tmp_path):
    """Catch keeping the worst, and a disk that fills."""
    _save(tmp_path, range(1, 9), [5.0, 1.0, 4.0, None, 3.0, 2.0, 9.0, None])
    kept = {int(path.name) for path in (tmp_path / 'checkpoints').iterdir()}
    assert kept == {2, 7, 8}
    assert _same(_restore(tmp_path), 8)
    assert _same(_restore(tmp_path, which='best'), 2)


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
    path.write_bytes(content)
    assert _same(_restore(tmp_path), 2)


def test_other_numbers_in_whole_files_are_noticed(tmp_path, monkeypatch):
    """Catch a checksum that is not compared."""
    _save(tmp_path, [1])
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, '_checksum', lambda arrays: 12345)
        _save(tmp_path, [2])
    found = _restore(tmp_path)
    assert _same(found, 1)
    assert 'checkpoints/2 cannot be used (its checksum' in found.warnings[0]


@pytest.mark.parametrize('how', ['truncated', 'empty', 'lost', 'no note'])
def test_damaged_file_gives_the_one_before(tmp_path, how):
    """Catch a reader's exception that ends the run."""
    _save(tmp_path, [1, 2])
    damaged = tmp_path / 'checkpoints' / '2'
    path = _largest_file(damaged / 'state')
    if how == 'truncated':
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == 'empty':
        path.write_bytes(b'')
    else:
        shutil.rmtree(damaged / ('state' if how == 'lost' else 'note'))
    found = _restore(tmp_path)
    assert _same(found, 1)
    assert len(found.warnings) == 1 and str(damaged) in found.warnings[0]


def test_steps_after_a_damaged_one_are_saved_again(tmp_path):
    """Catch a run that saves nothing until it has passed the damaged checkpoint."""
    _save(tmp_path, [1, 3])
    _largest_file(tmp_path / 'checkpoints' / '3' / 'state').write_bytes(b'')
    manager = checkpoints.open_directory(str(tmp_path))
    found = checkpoints.restore(manager, _state(0))
    checkpoints.set_aside_after(manager, found.step)
    manager.close()
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
    _save(tmp_path, [1, 2, 3], [1.0, 3.0, 2.0])
    _largest_file(tmp_path / 'checkpoints' / '1' / 'state').write_bytes(b'')
    with pytest.raises(UserError, match='checkpoints/1 cannot be used'):
        _restore(tmp_path, which='best')


def test_killed_during_a_write(tmp_path):
    """Catch a half-written checkpoint that is read, or that blocks the next one."""
    _save(tmp_path, [1, 2])
    base = tmp_path / 'checkpoints'
    # Orbax writes under this name and renames what is complete.
    half = shutil.copytree(base / '2', base / '3.orbax-checkpoint-tmp')
    _largest_file(half / 'state').write_bytes(b'')
    assert _same(_restore(tmp_path), 2)
    _save(tmp_path, [3])
    assert _same(_restore(tmp_path), 3)
    _save(tmp_path, [4])
    assert {path.name for path in base.iterdir()} == {'3', '4'}
