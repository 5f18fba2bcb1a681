"""Damages checkpoint directories at random; other numbers, or an exception, is a find.

    python -m tests.faults.damaged_checkpoints --seconds=600

Each time one to three files or directories of a good directory of three checkpoints are
cut, emptied, overwritten in a bit or a byte, removed, renamed, exchanged or replaced.
What `restore` then returns must be one of the states that were saved, with its own
note, or the user is told that none is left; a run must be able to save after it.
"""

import argparse
import os
import pathlib
import random
import shutil
import tempfile
import time

import chex
import jax.numpy as jnp
import optax

from gm_jax.errors import UserError
from gm_jax.training import checkpoints, train_state

STEPS = 2, 5, 7
# One object, since states with different optimizers are different trees.
TX = optax.adam(0.1)


def state(step: int) -> train_state.TrainState:
    """Return a small state that tells its step."""
    params = {'kernel': jnp.arange(30.0) * step, 'bias': jnp.full(3, step)}
    made = train_state.create(params, TX, ema=True)
    return made.replace(step=jnp.int32(step))


def make(workdir: str) -> None:
    """Save three checkpoints, the first of them the best."""
    for step in STEPS:
        note = {'place': step, 'best_step': 2, 'best_loss': 0.5, 'sums': {'loss': 1.5}}
        checkpoints.save(workdir, step, state(step), note)


def damage(directory: pathlib.Path, rng: random.Random) -> str:
    """Damage one thing in a directory; return what was done."""
    paths = sorted(directory.rglob('*'))
    path, other = rng.choice(paths), rng.choice(paths)
    how = rng.choice(['cut', 'empty', 'bit', 'byte', 'remove', 'rename', 'exchange',
                      'file', 'directory', 'link'])
    if path.is_dir():
        how = how if how in ('remove', 'rename', 'file', 'link') else 'rename'
    if how in ('cut', 'empty', 'bit', 'byte', 'exchange') and path.is_file():
        content = bytearray(path.read_bytes())
        if how == 'exchange' and other.is_file():
            path.write_bytes(other.read_bytes())
        elif how == 'cut' or not content:
            path.write_bytes(content[:rng.randrange(len(content) + 1)])
        elif how == 'empty':
            path.write_bytes(b'')
        else:
            place = rng.randrange(len(content))
            bits = 1 << rng.randrange(8) if how == 'bit' else rng.randrange(256)
            content[place] ^= bits
            path.write_bytes(content)
    elif how == 'rename':
        names = str(rng.randrange(12)), 'x', '3000000000', f'{path.name}.tmp'
        name = rng.choice(names)
        if not path.with_name(name).exists():
            path.rename(path.with_name(name))
    else:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if how == 'file':
            path.write_text('nothing')
        elif how == 'directory':
            path.mkdir()
        elif how == 'link':
            path.symlink_to(path)
    return f'{how} {path.relative_to(directory)}'


def check(workdir: str) -> str:
    """Restore from the directory, and save after it; return what was found."""
    template = state(0)
    try:
        best = checkpoints.restore(workdir, template, 'best')
        assert best is None or same(best) and best.step == 2
    except UserError:
        pass
    try:
        found = checkpoints.restore(workdir, template)
    except UserError as error:
        assert '\n' not in str(error)
        return 'none left'
    if found is None:
        return 'empty'
    assert same(found)
    checkpoints.set_aside(workdir, found.unusable)
    checkpoints.save(workdir, 11, state(11), {'place': 11})
    after = checkpoints.restore(workdir, template)
    assert after is not None and after.step == 11 and same(after)
    return f'step {found.step}'


def same(found: checkpoints.Checkpoint) -> bool:
    """Return whether a checkpoint is what was saved at its step."""
    chex.assert_trees_all_equal(found.state, state(found.step))
    return found.note['place'] == found.step


def main() -> None:
    """Damage directories until the time is over."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--seconds', type=float, default=600)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    end, seed = time.monotonic() + args.seconds, args.seed
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as directory:
        good = os.path.join(directory, 'good')
        make(good)
        while time.monotonic() < end:
            rng = random.Random(seed)
            workdir = os.path.join(directory, 'bad')
            shutil.copytree(good, workdir, symlinks=True)
            done = [
                damage(pathlib.Path(workdir, 'checkpoints'), rng)
                for _ in range(rng.randrange(1, 4))
            ]
            try:
                found = check(workdir)
            except BaseException:
                print(f'seed {seed}: {done}', flush=True)
                raise
            counts[found] = counts.get(found, 0) + 1
            shutil.rmtree(workdir)
            seed += 1
    print(counts)


if __name__ == '__main__':
    main()
