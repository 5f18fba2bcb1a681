"""A survey: every model on one image set, under one protocol and one budget each.

`experiments.compare` runs it. What is measured of each trained model is a row, and the
rows become a page and a table in the order of the lecture's tree.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gm_jax import html, plotting
from gm_jax.data import pipeline
from gm_jax.data.image_set import Examples, ImageSet
from gm_jax.families import scores
from gm_jax.families.scores import Features
from gm_jax.html import Cell
from gm_jax.trained import Run

__all__ = ['assess', 'Entry', 'markdown', 'page', 'save_samples', 'TREE']

# Images of the training and of the validation split whose likelihood is computed, and
# samples that are timed and shown.
_EXAMPLES, _SHOWN = 1000, 64


class Entry(NamedTuple):
    """A model of the survey.

    Attributes:
        name: what it is called in the table.
        experiment: the experiment.
        branch: where it is in the lecture's tree.
        flags: flags besides the defaults.
        one_pass: whether a sample takes one pass of a network.
    """

    name: str
    experiment: str
    branch: str
    flags: tuple[str, ...] = ()
    one_pass: bool = False


_AUTOREGRESSIVE = 'explicit, tractable: autoregressive'
_FLOW = 'explicit, tractable: change of variables'
_VARIATIONAL = 'explicit, approximate: variational'
_ENERGY = 'explicit, approximate: Markov chain'
_CHAIN = 'implicit: Markov chain'
_DIRECT = 'implicit: direct'
_BOTH = 'combinations'
# In the order of the lecture. The autoencoder and the classifier generate nothing.
TREE = (
    Entry('NADE', 'nade', _AUTOREGRESSIVE),
    Entry('MADE', 'made', _AUTOREGRESSIVE),
    Entry('PixelRNN, Row LSTM', 'pixel_rnn', _AUTOREGRESSIVE, ('--cell=row_lstm',)),
    Entry('PixelRNN, Diagonal BiLSTM', 'pixel_rnn', _AUTOREGRESSIVE),
    Entry('PixelCNN', 'pixel_cnn', _AUTOREGRESSIVE),
    Entry('Gated PixelCNN', 'gated_pixel_cnn', _AUTOREGRESSIVE),
    Entry('PixelCNN++', 'pixel_cnn_pp', _AUTOREGRESSIVE),
    Entry('multi-scale PixelCNN', 'multiscale_pixel_cnn', _AUTOREGRESSIVE),
    Entry('NICE', 'nice', _FLOW, one_pass=True),
    Entry('RealNVP', 'real_nvp', _FLOW, one_pass=True),
    Entry('VAE', 'vae', _VARIATIONAL, one_pass=True),
    Entry('IWAE, k = 5', 'vae', _VARIATIONAL, ('--objective=iwae', '--k=5'), True),
    Entry('RBM', 'rbm', _ENERGY),
    Entry('DBM', 'dbm', _ENERGY),
    Entry('GSN', 'gsn', _CHAIN),
    Entry('GAN', 'gan', _DIRECT, one_pass=True),
    Entry('DCGAN', 'dcgan', _DIRECT, one_pass=True),
    Entry('WGAN-GP', 'wgan', _DIRECT, one_pass=True),
    Entry('adversarial autoencoder', 'adversarial_autoencoder', _BOTH, one_pass=True),
    Entry('PixelVAE', 'pixel_vae', _BOTH),
)


def assess(run: Run, data: ImageSet, features: Features, num_scored: int) -> dict:
    """Measure what the table says of a trained model, except how fast it trains.

    Args:
        run: the model.
        data: the image set, with its splits.
        features: those by which samples and images are compared.
        num_scored: samples that are compared with as many test images.

    Returns:
        Numbers and lists, as JSON has them: see `page`.
    """
    metrics, codes = run.results['metrics'], run.experiment.codes
    row: dict[str, Any] = {
        'num_parameters': run.results['num_parameters'],
        'images_seen': (
            run.step * run.config.batch_size * max(run.experiment.minibatches, 1)
        ),
        'sample_seconds': _seconds_of_samples(run),
        'estimator': run.estimator,
        'can': [
            what for what, there in (
                ('density', run.estimator and not run.estimator.startswith('csl')),
                ('latent code', codes.decode is not None),
                ('inference', codes.encode is not None),
                ('conditional generation', run.experiment.complete is not None),
            ) if there
        ],
    }
    if run.estimator:
        row['nats'] = {'test': _with_error(
            metrics['nats_per_image'], metrics['nats_standard_error']
        )}
        for split in ('train', 'validation'):
            if split in data.splits:
                row['nats'][split] = _likelihood(run, data.splits[split])
    test = data.splits['test']
    found = scores.score(
        run.sample, test, True, most=num_scored, data=data, features=features
    )
    return {**row, 'scores': found}


def _seconds_of_samples(run: Run) -> float:
    """Return how long the samples take that are shown, once the sampler is compiled.

    Samples are drawn in whole batches, of which these may be a part.
    """
    size = run.config.batch_size
    drawn = -(-_SHOWN // size) * size
    run.sample(drawn)  # compiles
    times = []
    for _ in range(3):
        started = time.monotonic()
        run.sample(drawn)
        times.append(time.monotonic() - started)
    return min(times) * _SHOWN / drawn


def _likelihood(run: Run, examples: Examples) -> dict[str, float]:
    """Return minus the mean log-likelihood of some examples, with its error."""
    num = min(_EXAMPLES, len(examples))
    rows = np.sort(pipeline.example_order(0, 0, num, len(examples)))
    nats = -run.log_prob(examples.fetch(rows)['image'])
    return _with_error(float(nats.mean()), float(nats.std(ddof=1) / math.sqrt(num)))


def _with_error(value: float, error: float) -> dict[str, float]:
    return {'value': value, 'error': error}


def save_samples(run: Run, path: str) -> None:
    """Write the samples that the page shows."""
    plotting.save_png(path, plotting.image_grid(run.sample(_SHOWN)))


def page(
    title: str, protocol: Sequence[str], rows: Iterable[Mapping[str, Any]],
    samples: Mapping[str, bytes],
) -> str:
    """Return the page of a survey.

    Args:
        title: its title.
        protocol: sentences on how the models were trained and evaluated.
        rows: the models in the order of the tree; one that failed has 'error'.
        samples: by the names of models, pictures in PNG.
    """
    rows = list(rows)
    return html.document(title, [
        *map(html.text, protocol),
        html.table(_HEADINGS, [_cells(row) for row in rows], sortable=True),
        *(
            html.text(f'{row["name"]}: {row["error"]}') for row in rows
            if 'error' in row
        ),
        html.heading('Samples'),
        html.text('64 of each model, not selected, drawn with the same seed.'),
        html.gallery(
            html.picture(
                samples[row['name']], f'64 samples of {row["name"]}', row['name']
            ) for row in rows if row['name'] in samples
        ),
    ])


_HEADINGS = (
    'model', 'branch of the tree', 'test', 'estimator', 'train', 'validation',
    'distance of samples', 'density', 'coverage', 'parameters', 'images seen',
    'minutes', 'images/s', 'seconds for 64 samples', 'can',
)


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the table in Markdown."""
    lines = [f'| {" | ".join(_HEADINGS)} |', '|' + '---|' * len(_HEADINGS)]
    lines += [
        f'| {" | ".join(cell.shown for cell in _cells(row))} |' for row in rows
    ]
    return '\n'.join(lines) + '\n'


def _cells(row: Mapping[str, Any]) -> list[Cell]:
    """Return the cells of a model; those that it does not have are empty."""
    if 'error' in row:
        none = [Cell('') for _ in _HEADINGS[3:]]
        return [Cell(row['name'], row['name']), Cell(row['branch'], row['branch']),
                Cell('not here'), *none]
    found = row['scores']
    distance = next(
        x for name, x in found.items() if name.endswith('_frechet_distance')
    )
    minutes = row['train_seconds'] / 60
    can = [*row['can'], *(['samples in one pass'] if row['one_pass'] else [])]
    return [
        Cell(row['name'], row['name']), Cell(row['branch'], row['branch']),
        _likelihood_cell(row, 'test'), Cell(row['estimator'], row['estimator'] or None),
        _likelihood_cell(row, 'train'), _likelihood_cell(row, 'validation'),
        _number(distance, '.3g'), _number(found['density'], '.2f'),
        _number(found['coverage'], '.2f'), _number(row['num_parameters'], ',d'),
        _number(row['images_seen'], ',d'), _number(minutes, '.2g'),
        _number(row['images_per_second'], ',.0f'),
        _number(row['sample_seconds'], '.2g'), Cell(', '.join(can)),
    ]


def _likelihood_cell(row: Mapping[str, Any], split: str) -> Cell:
    found = row.get('nats', {}).get(split)
    if found is None or None in found.values():  # not a finite number
        return Cell('')
    value, error = found['value'], found['error']
    if row['unit'] == 'bits/dim':
        value, error = (x / row['num_dims'] / math.log(2) for x in (value, error))
    digits = 2 if row['unit'] == 'nats' else 3
    return Cell(f'{value:.{digits}f} +- {error:.{digits}f}', value)


def _number(value: float | None, form: str) -> Cell:
    if value is None:  # it was not finite
        return Cell('')
    shown = format(value, form)
    # 1.2e+02 is 120.
    return Cell(format(value, ',.0f') if 'e+' in shown else shown, value)
