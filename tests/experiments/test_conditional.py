"""Models that are given part of an image: their densities, samplers and mistakes."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import gated_pixel_cnn, pixel_cnn_pp
from gm_jax.data import image_set, sources
from gm_jax.families import conditional
from gm_jax.families.setting import pick

NARROW = ('--features=6', '--observer_blocks=1', '--num_steps=2', '--batch_size=8',
          '--num_samples=6', '--eval_every=2')
EXPERIMENTS = {
    'gated_pixel_cnn': (
        gated_pixel_cnn.main, ('--num_layers=1', '--head=6', '--first_kernel=3')
    ),
    'pixel_cnn_pp': (
        pixel_cnn_pp.main,
        ('--num_levels=1', '--num_mixtures=2', '--order=reversed'),
    ),
}
TASKS = {
    'completion': ('--task=completion', '--missing=center'),
    'colorization': ('--task=colorization',),
    'super_resolution': ('--task=super_resolution', '--factor=2'),
}


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Return the path of a set of 4 x 4 colour images."""
    path = tmp_path_factory.mktemp('data') / 'images.npz'
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8))
    return path


@pytest.mark.parametrize('name, task', [
    ('gated_pixel_cnn', 'completion'), ('pixel_cnn_pp', 'super_resolution'),
    pytest.param('gated_pixel_cnn', 'colorization', marks=pytest.mark.long),
])
def test_from_training_to_samples(name, task, images, tmp_path, monkeypatch, capfd):
    """Catch given pixels that change, and samplers that are given other things."""
    main, more = EXPERIMENTS[name]
    workdir = tmp_path / 'run'
    flags = [f'--workdir={workdir}', f'--dataset=npz:{images}', *NARROW, *more]
    assert main([*flags, *TASKS[task]]) == 0
    numbers = json.loads((workdir / 'results.json').read_text())['metrics']
    num_missing = 3 * (4 if task == 'completion' else 16)
    assert numbers['task'] == task
    bits = numbers['nats_per_image'] / num_missing / np.log(2)
    np.testing.assert_allclose(numbers['bits_per_dim'], bits, rtol=1e-6)
    assert (workdir / 'samples' / f'{task}.png').exists()
    monkeypatch.delattr(sources, 'load')
    workdir = f'--workdir={workdir}'
    assert main([workdir, '--mode=sample']) == 2
    assert 'needs --given=FILE' in capfd.readouterr().err
    truth = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 3))
    np.savez(tmp_path / 'given.npz', images=truth)
    drawn = []
    for sampler in ('incremental', 'fixed_point', 'ancestral'):
        assert main([workdir, '--mode=sample', f'--sampler={sampler}',
                     f'--given={tmp_path / "given.npz"}']) == 0
        with np.load(tmp_path / 'run' / 'samples.npz') as file:
            drawn.append(file['images'].astype(int))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0], drawn[2])
    inside = np.zeros((4, 4), bool)
    inside[1:3, 1:3] = True
    kept = ~inside if task == 'completion' else np.zeros((4, 4), bool)
    for n in range(6):
        np.testing.assert_array_equal(drawn[0][n][kept], truth[n % 3][kept])
        assert not np.array_equal(drawn[0][n], truth[n % 3])


def _built(task, image_shape, num_values):
    config = gated_pixel_cnn.Config(
        task=task, missing='top', factor=2, features=24, num_layers=1, head=24,
        first_kernel=3, observer_blocks=1,
    )
    data = image_set.ImageSet(
        name='none', image_shape=image_shape, num_values=num_values, num_classes=0,
        splits={},
    )
    observer = conditional.Observer(24, 1)
    model = conditional.observed(gated_pixel_cnn.make_model(config, data), observer)
    made = conditional.make_task(config, data)
    x = jnp.zeros((1, *image_shape), jnp.int32)
    variables = jax.jit(lambda: model.init(jax.random.key(0), x, made.given(x)))()
    variables = jax.tree.map(lambda a: 2 * a, variables)

    def log_prob(x, given):
        params = model.apply(variables, x, given, rngs=None, step=0, chunk=0)
        return model.distribution.log_prob(
            *pick((params, x), made.missing)
        )

    return made, jax.jit(log_prob)


def test_conditional_densities_are_normalised():
    """Catch given values that are counted, and an observer that sees the others."""
    made, log_prob = _built('completion', (2, 2, 1), 4)
    lower = np.random.default_rng(0).integers(0, 4, 2)
    x = np.array([[*upper, *lower] for upper in itertools.product(range(4), repeat=2)])
    x = x.reshape(16, 2, 2, 1)
    total = np.exp(np.asarray(log_prob(x, made.given(x)), np.float64)).sum()
    np.testing.assert_allclose(total, 1, atol=1e-5)
    # Of the means of blocks all images are a completion.
    made, log_prob = _built('super_resolution', (2, 2, 1), 2)
    x = np.array(list(itertools.product(range(2), repeat=4))).reshape(16, 2, 2, 1)
    given = jnp.broadcast_to(made.given(x[5:6]), (16, 2, 2, 1))
    total = np.exp(np.asarray(log_prob(x, given), np.float64)).sum()
    np.testing.assert_allclose(total, 1, atol=1e-5)


def test_what_comes_later_in_raster_order_is_seen_where_it_is_given():
    """Catch a condition that reaches a pixel only at its own place."""
    made, log_prob = _built('completion', (4, 4, 1), 2)
    x = np.zeros((2, 4, 4, 1), int)
    x[1, 3, 3] = 1  # missing are the first two rows
    first, second = np.asarray(log_prob(x, made.given(x)))
    assert abs(first - second) > 1e-6


@pytest.mark.parametrize('flags, sentence', [
    (('--task=colorization',), 'needs colours'),
    (('--task=super_resolution', '--factor=3'), 'needs sides that are multiples of 3'),
    (('--task=completion', '--class_conditional'), 'do not go together'),
    (('--dataset=synthetic:lorenz', '--task=completion', '--missing=top'),
     '--missing=top hides no pixel of images of 1 x 96'),
    (('--missing=top',), '--missing needs --task=completion: leave it out.'),
    (('--task=completion', '--factor=2'), '--factor needs --task=super_resolution'),
    (('--observer_blocks=1',), '--observer_blocks needs a --task'),
])
def test_mistakes(flags, sentence, tmp_path, capfd):
    """Catch a traceback, and a task that means nothing for the images."""
    assert gated_pixel_cnn.main([f'--workdir={tmp_path}', *flags]) == 2
    error = capfd.readouterr().err
    assert sentence in error and error.count('\n') == 1
