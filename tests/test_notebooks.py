"""The notebooks in docs/notebooks run as a reader runs them, without a warning."""

import pathlib
import shutil

import jupytext
import nbclient
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(ROOT.glob('docs/notebooks/*.md'))


@pytest.mark.long
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path, monkeypatch):
    """Catch a cell that fails or warns, and a file that is left beside a notebook."""
    clone = tmp_path / 'clone'
    folder = clone / 'docs' / 'notebooks'
    folder.mkdir(parents=True)
    models = 'results/models/digits'
    if (ROOT / models).exists():
        shutil.copytree(ROOT / models, clone / models)
    before = _files(clone)
    (tmp_path / 'tmp').mkdir()
    for name, value in {
        'PYTHONPATH': ROOT, 'TMPDIR': tmp_path / 'tmp',
        'IPYTHONDIR': tmp_path / 'ipython', 'JUPYTER_RUNTIME_DIR': tmp_path / 'jupyter',
        'JAX_DISABLE_MOST_OPTIMIZATIONS': '0',  # as a reader's programs are compiled
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv('XLA_FLAGS', raising=False)
    notebook = jupytext.read(path)
    nbclient.NotebookClient(
        notebook, timeout=600, resources={'metadata': {'path': str(folder)}},
    ).execute()
    outputs = [o for cell in notebook.cells for o in cell.get('outputs', [])]
    assert not [o['text'] for o in outputs if o.get('name') == 'stderr']
    assert any('image/png' in o.get('data', {}) for o in outputs)
    assert _files(clone) == before


def _files(directory: pathlib.Path) -> set[pathlib.Path]:
    return set(directory.rglob('*'))
