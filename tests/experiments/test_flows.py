"""Flows as experiments: probabilities, closed forms, and runs of the command."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

import gm_jax
from experiments import nice, real_nvp
from gm_jax import plotting
from gm_jax.data import sources
from gm_jax.data.image_set import ArrayExamples, ImageSet
from gm_jax.families import classifier
from gm_jax.keys import fold_in_each
from gm_jax.losses import likelihoods
from gm_jax.training import train_state

NICE = {'num_couplings': 2, 'hidden': (4,)}
REAL_NVP = {
    'channelwise': (1,), 'last': 1, 'whole_scales': 0, 'features': 2, 'num_blocks': 0,
}
NOISE = {
    'dequantization': 'variational', 'noise_couplings': 1, 'noise_features': 2,
}


def _data(x: np.ndarray, num_values: int) -> ImageSet:
    examples = ArrayExamples(x.astype(np.uint8), np.zeros(len(x), np.int32))
    return ImageSet(
        name='toy', image_shape=x.shape[1:], num_values=num_values, num_classes=0,
        splits={'train': examples, 'test': examples},
    )


def _moved(state, size):
    """Return a state that can be evaluated, with parameters far from the first."""
    rng = np.random.default_rng(3)
    return train_state.of_variables({'params': jax.tree.map(
        lambda a: a + size * rng.normal(size=a.shape).astype(np.float32), state.params
    )})


@pytest.mark.parametrize('module, settings', [
    (nice, NICE), pytest.param(nice, {**NICE, **NOISE}, marks=pytest.mark.long),
    (real_nvp, REAL_NVP), (real_nvp, {**REAL_NVP, **NOISE}),
])
def test_probabilities_of_all_images(module, settings):
    """Catch a density that is not that of the noise, and a gap that is forgotten.

    The weights of all images together integrate the density over the cube of y. The
    rest of its mass is outside, where samples of the flow show it.
    """
    x = (np.arange(16)[:, None] // 2**np.arange(4) % 2).reshape(16, 2, 2, 1)
    config = module.Config(test_samples=1, **settings)
    experiment = module.build(config, _data(x, num_values=2))
    state = _moved(jax.jit(experiment.init)(jax.random.key(0)), 0.2)
    num = 2048  # noises of each image
    index = np.tile(np.arange(16, dtype=np.int32), num)
    batch = {
        'image': x[index], 'index': index, 'label': 0 * index,
        'chunk': np.repeat(np.arange(num, dtype=np.int32), 16),
    }
    step = jax.jit(experiment.evaluation.test_step)
    log_w = np.asarray(step(state, batch, jax.random.key(1))['log_w'], np.float64)
    log_w = log_w.reshape(num, 16)
    bound = np.exp(log_w.mean(0)).sum()
    totals = np.exp(log_w).sum(1)  # an unbiased estimate of the mass each
    mass, error = totals.mean(), totals.std() / num**0.5
    assert bound < mass < 1 + 5 * error
    inside = _share_inside(experiment, state)
    spread = (inside * (1 - inside) / 20_000)**0.5
    assert abs(mass - inside) < 5 * (error + spread) + 1e-4 and error < 0.02
    if module is real_nvp:
        assert inside > 0.999  # so the estimates sum to 1


def _share_inside(experiment, state) -> float:
    """Return the share of the samples of a flow that are in the cube [0, 1]^4."""
    flow = experiment.codes.decode.args[0].flow
    z = flow.draw_prior(fold_in_each(jax.random.key(2), jnp.arange(20_000)), 4)
    invert = jax.jit(functools.partial(flow.module.apply, method='inverse'))
    y, _ = invert({'params': state.params['flow']}, z)
    return float(((y >= 0) & (y <= 1)).all((1, 2, 3)).mean())


@pytest.mark.parametrize('module, settings, log_density', [
    (nice, NICE, stats.logistic.logpdf),
    (real_nvp, {**REAL_NVP, 'alpha': 0.05}, lambda y: (
        stats.norm.logpdf(special.logit(0.05 + 0.9 * y))
        + np.log(0.9) - np.log(0.05 + 0.9 * y) - np.log(0.95 - 0.9 * y)
    )),
])
def test_identity_has_the_closed_form(module, settings, log_density):
    """Catch an alpha, a V or a D that the bits do not count."""
    data = sources.load('digits')
    few = data.splits['test'].fetch(np.arange(32))
    config = module.Config(test_samples=64, **settings)
    experiment = module.build(config, data)
    state = jax.jit(experiment.init)(jax.random.key(0))

    def identity(path, a):  # the couplings are it already
        names = {getattr(key, 'key', '') for key in path}
        return 0 * a if names & {'norm', 'scale'} else a

    params = jax.tree_util.tree_map_with_path(identity, state.params)
    state = train_state.of_variables({'params': params})
    step, evaluation = jax.jit(experiment.evaluation.test_step), experiment.evaluation
    index = np.arange(32, dtype=np.int32)
    log_w = np.stack([
        step(state, {**few, 'index': index, 'chunk': 0 * index + chunk},
             jax.random.key(1))['log_w']
        for chunk in range(evaluation.test_chunks)
    ], axis=1)
    found = evaluation.summarize({'log_w': log_w})
    of_value = np.array([
        integrate.quad(log_density, v / 17, (v + 1) / 17)[0] * 17 for v in range(17)
    ])
    nats = np.log(17) * 64 - of_value[few['image']].sum((1, 2, 3)).mean()
    bits = nats / 64 / np.log(2)
    np.testing.assert_allclose(found['bound_bits_per_dim'], bits, rtol=2e-3)
    assert found['bits_per_dim'] < found['bound_bits_per_dim']
    assert found['estimator'] == 'iwae-64' and found['importance_samples'] == 64
    estimate = special.logsumexp(log_w.astype(np.float64), axis=1) - np.log(64)
    np.testing.assert_allclose(found['nats_per_image'], -estimate.mean(), rtol=1e-6)
    per_dim = likelihoods.bits_per_dim(jnp.asarray([estimate.mean()]), 64)[0]
    np.testing.assert_allclose(found['bits_per_dim'], per_dim, rtol=1e-5)


TINY = (
    '--num_steps=2', '--batch_size=8', '--num_samples=8', '--eval_every=2',
    '--log_every=1', '--test_samples=2',
)
RUNS = {
    'nice': (nice.main, (7, 5, 3), ('--hidden=8', '--ema=0.9')),
    'real_nvp': (real_nvp.main, (8, 4, 1), (
        '--channelwise=1', '--last=0', '--features=2', '--num_blocks=0',
        '--dequantization=variational', '--noise_couplings=1', '--noise_features=2',
    )),
}


@pytest.fixture(name='run', scope='module', params=RUNS)
def make_run(request, tmp_path_factory):
    """Return (main, work directory, flags, images) of a tiny run."""
    main, shape, more = RUNS[request.param]
    workdir = tmp_path_factory.mktemp(request.param)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, *shape), dtype=np.uint8)
    # So few that one is left for the test split.
    np.savez(workdir / 'images.npz', images=images[:12])
    flags = [f'--workdir={workdir}/run', f'--dataset=npz:{workdir}/images.npz',
             *TINY, *more]
    assert main(flags) == 0
    return main, workdir / 'run', flags, images


def test_a_run(run):
    """Catch a bound above the estimate, and codes that do not decode to their image."""
    main, workdir, flags, images = run
    lines = [
        json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().split('\n')
        if line
    ]
    assert {'loss', 'bound_nats_per_image', 'bound_bits_per_dim'} < set(lines[0])
    found = json.loads((workdir / 'results.json').read_text())['metrics']
    assert found['estimator'] == 'iwae-2'
    assert found['nats_per_image'] < found['bound_nats_per_image']
    assert (workdir / 'samples' / 'interpolations.png').exists()
    trained = gm_jax.load(workdir)
    test = sources.load(flags[1].removeprefix('--dataset=')).splits['test'].images
    nats = -trained.log_prob(test).mean()
    np.testing.assert_allclose(nats, found['nats_per_image'], rtol=1e-6)
    z = trained.encode(images)
    assert z.shape == (40, images[0].size)
    np.testing.assert_array_equal(trained.decode(z), images)
    drawn = trained.sample(8)
    assert drawn.shape == (8, *images.shape[1:]) and drawn.dtype == np.uint8
    nearer = trained.sample(8, temperature=0.1)
    assert nearer.astype(int).std(0).mean() < drawn.astype(int).std(0).mean()


@pytest.mark.parametrize('flags, sentence', [
    (('--channelwise=1,1,1,1',), '1,1 needs sides that are multiples of 16'),
    (('--channelwise=0',), '--channelwise'), (('--channelwise=1001',), 'at most 1000'),
    (('--alpha=0',), '--alpha must be at least'), (('--alpha=0.5',), 'at most 0.49'),
    (('--dequantization=none',), 'not one of uniform, variational'),
    (('--temperature=-1',), '--temperature'), (('--test_samples=-1',), 'test_samples'),
    (('--classifier=nowhere',), 'holds no run: train the experiment `classifier`'),
])
def test_mistakes(flags, sentence, tmp_path, capfd):
    """Catch a traceback, and work that is done before a mistake is seen."""
    np.savez(tmp_path / 'images.npz', images=np.zeros((20, 8, 4, 1), np.uint8))
    given = [f'--workdir={tmp_path}/run', f'--dataset=npz:{tmp_path}/images.npz']
    assert real_nvp.main([*given, *TINY, *flags]) == 2
    error = capfd.readouterr().err
    assert sentence in error and error.count('\n') == 1
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('module, settings', [
    (nice, NICE),
    pytest.param(real_nvp, {**REAL_NVP, **NOISE}, marks=pytest.mark.long),
])
def test_eight_devices_compute_what_one_does(module, settings):
    """Catch noise or moments that depend on the device."""
    data = sources.load('digits')
    config = module.Config(batch_size=16, **settings)
    experiment = module.build(config, data)
    state = jax.jit(experiment.init)(jax.random.key(0))
    index = np.arange(16, dtype=np.int32)
    batch = {**data.splits['train'].fetch(index), 'index': index}
    one, numbers = jax.jit(experiment.train_step)(state, batch, jax.random.key(1))
    step = functools.partial(experiment.train_step, axis_name='devices')
    spread = jax.vmap(step, (None, 0, None), axis_name='devices')
    parts = jax.tree.map(lambda a: a.reshape(8, 2, *a.shape[1:]), batch)
    each, parts = jax.jit(spread)(state, parts, jax.random.key(1))
    for name, value in numbers.items():
        np.testing.assert_allclose(parts[name], np.full(8, value), rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(each.params)):
        np.testing.assert_allclose(b[3], a, atol=1e-4)


def test_arithmetic_on_codes(monkeypatch):
    """Catch codes of other images, and arithmetic that decodes something else."""
    data = sources.load('digits')
    images = plotting.to_uint8(data.splits['test'].images, num_values=17)
    known = {x.tobytes(): y for x, y in zip(images, data.splits['test'].labels)}
    seen = []

    def classify(x):
        seen.append(np.array([known.get(one.tobytes(), -1) for one in x]))
        return seen[-1]

    monkeypatch.setattr(
        classifier, 'load', lambda path, data: classifier.Trained(classify, classify)
    )
    experiment = nice.build(nice.Config(classifier='DIR', **NICE), data)
    state = _moved(jax.jit(experiment.init)(jax.random.key(0)), 0.05)
    numbers, pictures = experiment.finish(state, 0, print)
    assert (seen[0] == data.splits['test'].labels).all()
    assert numbers['analogies'] > 0 and set(pictures) == {'analogies'}
    assert (seen[1] == -1).mean() > 0.9  # new images
