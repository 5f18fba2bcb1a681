"""Weights & Biases, offline: what its own file holds after a run that went on."""

import json
import pathlib
import struct
from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

import pytest

from experiments import vae
from tests.training import tiny

FLAGS = (
    '--hidden=8', '--latent_dims=3', '--batch_size=8', '--num_steps=10',
    '--log_every=10', '--eval_every=10', '--num_samples=4', '--test_samples=1',
    '--steps_per_dispatch=10', '--binarize=threshold', '--schedule=constant',
    '--logger=gm_jax.training.wandb_logger',
)
_BLOCK = 32_768


def _records(path: pathlib.Path) -> Iterator[bytes]:
    """Yield the records of a file in the format of LevelDB's log.

    After 7 bytes come blocks of fragments: a checksum of 4 bytes, the length in 2, the
    type (1 whole, 2 first, 3 middle, 4 last), the data.
    """
    content, at, record = path.read_bytes(), 7, b''
    while at + 7 <= len(content):
        if _BLOCK - at % _BLOCK < 7:
            at += _BLOCK - at % _BLOCK
            continue
        size, kind = struct.unpack_from('<HB', content, at + 4)
        record += content[at + 7:at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield record
            record = b''


def _values(items: Iterable[Any]) -> dict[str, Any]:
    """Return numbers and texts by name, the names of nested ones joined with dots."""
    return {
        item.key or '.'.join(item.nested_key): json.loads(item.value_json)
        for item in items
    }


@pytest.mark.long
def test_alarms_have_a_title_each():
    """Catch a lasting alarm that sends a message at every line."""
    from gm_jax.training import wandb_logger

    run = mock.Mock()
    logger = wandb_logger._Logger(run)
    for step in (5, 6):
        logger.write(step, 'train', {}, [f'it saturates: {step}', f'lost, {step} of 9'])
    titles = [call.args[0] for call in run.alert.call_args_list]
    assert titles == ['it saturates', 'lost'] * 2
    assert run.alert.call_args.args[1] == 'step 6: lost, 6 of 9'


@pytest.mark.long
def test_a_work_directory_is_one_run(tmp_path, monkeypatch):
    """Catch lines, pictures or settings that are lost, and a second run on resume."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    monkeypatch.setenv('WANDB_DIR', str(tmp_path))
    workdir = tmp_path / 'the_run'
    for steps in (10, 20):
        argv = [f'--workdir={workdir}', *FLAGS, f'--num_steps={steps}']
        assert vae.main(argv) == 0
    wandb.teardown()  # its process writes the rest of the files
    own = (workdir / 'wandb_id.txt').read_text()
    paths = (tmp_path / 'wandb').glob(f'offline-run-*-{own}/run-{own}.wandb')
    records = []
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns):
        records += map(wandb_internal_pb2.Record.FromString, _records(path))
    started = [r.run for r in records if r.HasField('run')]
    assert {(run.run_id, run.display_name, run.project) for run in started} == {
        (own, 'the_run', 'gm_jax')
    }
    assert [r.exit.exit_code for r in records if r.HasField('exit')] == [0, 0]
    settings = _values(
        item for r in records for item in (*r.run.config.update, *r.config.update)
    )
    config = json.loads((workdir / 'config.json').read_text())
    del config['module']
    assert {name: settings[name] for name in config} == config
    assert {(r.metric.name, r.metric.glob_name, r.metric.step_metric)
            for r in records if r.HasField('metric')} >= {
        ('step', '', ''), ('', '*', 'step')
    }
    rows = [_values(r.history.item) for r in records if r.HasField('history')]
    for line in tiny.metrics(workdir):
        named = {f'{line["split"]}/{name}': value for name, value in line.items()
                 if name not in ('step', 'split')}
        assert any(
            row['step'] == line['step'] and named.items() <= row.items() for row in rows
        ), line
    shown = {(row['step'], name.removesuffix('._type'))
             for row in rows for name in row if row[name] == 'image-file'}
    pictures = 'samples', 'final/reconstructions', 'final/traversals'
    assert shown == {(step, name) for step in (10, 20) for name in pictures}
    summary = _values(item for r in records for item in r.summary.update)
    for name, value in tiny.results(workdir)['metrics'].items():
        if isinstance(value, (int, float, str)):
            assert summary[f'final/{name}'] == value
