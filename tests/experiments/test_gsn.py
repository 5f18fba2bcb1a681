"""Generative stochastic networks: what the chain draws, by numbers."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import gm_jax
from experiments import gsn
from gm_jax.data import sources
from gm_jax.data.image_set import ArrayExamples, ImageSet
from gm_jax.errors import UserError
from gm_jax.evaluation import mixing
from gm_jax.families import stochastic, stochastic_scores
from gm_jax.families.classifier import Trained
from gm_jax.keys import fold_in_each
from gm_jax.losses import likelihoods

_KEY = jax.random.key(0)
BITS = np.arange(256)[:, None] >> np.arange(8) & 1


def _ising():
    """Return the probabilities of all 2 x 4 images, whose neighbours are alike."""
    spins = (2 * BITS - 1).reshape(-1, 2, 4)
    energy = (spins[:, 0] * spins[:, 1]).sum(1)
    energy += (spins[:, :, 1:] * spins[:, :, :-1]).sum((1, 2))
    return special.softmax(0.4 * energy)


def _data():
    images = BITS.reshape(-1, 2, 4, 1).astype(np.uint8)
    examples = ArrayExamples(images, np.full(256, -1, np.int32))
    return ImageSet(
        name='ising', image_shape=(2, 4, 1), num_values=2, num_classes=0,
        splits={'train': examples, 'test': examples},
    )


def _train(config, p, num_steps):
    """Train on images drawn from p; return the setting and the state."""
    data = _data()
    experiment = gsn.build(config, data)
    images = jnp.asarray(data.splits['train'].images)
    rows = np.random.default_rng(0).choice(256, (num_steps, config.batch_size), p=p)

    @jax.jit
    def run(state):
        def step(state, row):
            batch = {'image': images[row], 'index': jnp.arange(config.batch_size)}
            return experiment.train_step(state, batch, jax.random.key(1))

        return jax.lax.scan(step, state, rows)[0]

    setting = stochastic.Setting(config, data, stochastic.make_model(config, data))
    return setting, run(experiment.init(jax.random.key(0)))


def _divergence(p, q):
    return float(np.sum(p * np.log(p / q)))


@pytest.mark.parametrize('walkbacks, input_noise', [(1, 0.1), (2, 0.05)])
def test_the_trained_chain_draws_the_data(walkbacks, input_noise):
    """Catch a chain with another stationary distribution than that of the data.

    It is exact, by all transitions between all images of 8 bits. A wrong reconstruction
    in the loss, such as of the corrupted image, is found by it.
    """
    p = _ising()
    config = gsn.Config(
        layers=(64,), walkbacks=walkbacks, input_noise=input_noise, batch_size=256,
        learning_rate=1e-2, num_steps=400,
    )
    s, state = _train(config, p, config.num_steps)
    x = jnp.asarray(BITS, jnp.float32)
    logits, _ = s.model.apply(state.eval_variables, x, s.model.start(256))
    ones = np.asarray(jax.nn.sigmoid(logits), np.float64)[:, None]
    denoised = np.prod(np.where(BITS[None], ones, 1 - ones), axis=2)
    flips = (BITS[:, None] != BITS[None]).sum(-1)
    corruption = (input_noise / 2) ** flips * (1 - input_noise / 2) ** (8 - flips)
    T = corruption @ denoised
    assert _divergence(p, mixing.stationary(T)) < 0.02
    # What independent bits can reach at best.
    marginals = np.prod(np.where(BITS, p @ BITS, 1 - p @ BITS), axis=1)
    assert _divergence(p, marginals) > 0.5
    assert 0.01 < mixing.spectral_gap(T) < 0.5


@pytest.mark.long
def test_two_layers_draw_about_the_data():
    """Catch noise in the hidden layers that the loss and the chain do not share.

    The hidden layers start at zero in training, and do not in the chain, so that no
    theorem says that the divergence is small: it is 0.08. A chain with twice the noise
    of training is at 0.27, one without it at 0.22, and independent bits are at 0.92.
    """
    p = _ising()
    config = gsn.Config(
        layers=(64, 16), walkbacks=2, input_noise=0.1, hidden_noise=1.0,
        batch_size=256, learning_rate=1e-2, num_steps=1000, chain_steps=200, thin=4,
    )
    s, state = _train(config, p, config.num_steps)
    draw = jax.jit(functools.partial(stochastic.from_start, s, num=50))
    rngs = fold_in_each(jax.random.key(5), jnp.arange(1000))
    logits = draw(state.eval_variables, rngs).reshape(-1, 8)
    # The mean of P(x|h) over the states.
    log_px = jax.vmap(
        lambda x: likelihoods.bernoulli_log_prob(
            logits, jnp.broadcast_to(x, logits.shape)
        )
    )
    found = np.concatenate([
        np.exp(np.asarray(log_px(part), np.float64)).mean(axis=1)
        for part in np.split(BITS, 16)
    ])
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-4)
    assert _divergence(p, found) < 0.2


TINY = (
    '--num_steps=3', '--batch_size=16', '--num_samples=8', '--layers=8,6',
    '--walkbacks=2', '--chain_steps=6', '--thin=2', '--parzen_samples=20',
    '--test_samples=30', '--eval_batch_size=200', '--hidden_noise=0.5',
)


@pytest.fixture(scope='module', name='trained')
def make_trained(tmp_path_factory):
    """Return the work directory of a tiny run on digits."""
    workdir = tmp_path_factory.mktemp('gsn')
    assert gsn.main([f'--workdir={workdir}', *TINY]) == 0
    return workdir


def test_results_call_the_bound_by_its_name(trained):
    """Catch a bound that is called exact, and a curve that does not end in it."""
    metrics = json.loads((trained / 'results.json').read_text())['metrics']
    assert metrics['estimator'] == 'csl-30' and metrics['chain_states'] == 30
    curve = metrics['csl_nats_by_states']
    assert list(curve) == ['1', '10', '30']
    assert min(curve.values()) > 20  # that of the fair coins is 44
    assert curve['30'] == pytest.approx(metrics['nats_per_image'], rel=1e-6)
    assert set(metrics['autocorrelation']) == {'1', '10', '100'}
    windows = metrics['parzen']
    # k-means scores above the data: no measure of a model.
    assert windows['samples'] < windows['training_images']
    assert windows['num_samples'] == 20
    for name in ('chains', 'completions'):
        assert (trained / 'samples' / f'{name}.png').exists()
    assert gsn.main([f'--workdir={trained}', *TINY, '--mode=eval']) == 0
    again = json.loads((trained / 'results_eval_step=3.json').read_text())
    assert again['metrics'] == metrics


def test_a_loaded_model(trained, monkeypatch, capsys):
    """Catch other chains than those of the results, and pixels that are not kept."""
    test = sources.load('digits', binarize='threshold').splits['test']
    monkeypatch.delattr(sources, 'load')
    run = gm_jax.load(trained)
    nats = -run.log_prob(test.images)
    numbers = run.results['metrics']
    np.testing.assert_allclose(nats.mean(), numbers['nats_per_image'], rtol=1e-6)
    assert run.estimator == 'csl-30'
    mask = np.arange(8)[:, None] < np.arange(8)
    capsys.readouterr()
    x = run.sample(5, given=test.images[:5], mask=mask, seed=1)
    assert 'only as far as P(x|x~) is exact' in capsys.readouterr().out
    np.testing.assert_array_equal(x[:, mask], 255 * test.images[:5, mask])
    other = run.sample(5, seed=1)
    assert np.any(x[:, ~mask] != other[:, ~mask])
    np.testing.assert_array_equal(run.sample(2, seed=1), other[:2])
    codes = run.encode(test.images[:3])
    assert codes.shape == (3, 8) and run.decode(codes).shape == (3, 8, 8, 1)


@pytest.mark.long
def test_given_on_the_command_line(trained, tmp_path):
    """Catch a mask that the command line ignores."""
    images = np.random.default_rng(0).integers(0, 2, (3, 8, 8, 1))
    mask = np.eye(8)
    np.savez(tmp_path / 'given.npz', images=images, mask=mask)
    flags = [f'--workdir={trained}', *TINY, '--mode=sample']
    assert gsn.main([*flags, f'--given={tmp_path / "given.npz"}']) == 0
    with np.load(trained / 'samples.npz') as file:
        x, kept = file['images'], file['mask']
        np.testing.assert_array_equal(x[kept], file['given'][kept])
        assert x.shape == kept.shape == (8, 8, 8, 1) and kept[0].sum() == 8
    assert gsn.main([*flags, '--given=nowhere.npz']) == 2


def test_chains_do_not_depend_on_the_batch():
    """Catch chains that belong to an example, and chunks that share their noise."""
    config = gsn.Config(
        layers=(8,), walkbacks=1, chain_steps=3, thin=2, test_samples=2000
    )
    experiment, rng = gsn.build(config, _data()), jax.random.key(1)
    assert experiment.evaluation.test_chunks == 2
    state, step = experiment.init(rng), jax.jit(experiment.evaluation.test_step)
    images = BITS.reshape(2, 128, 2, 4, 1)

    def log_px(half, chunk):
        batch = {
            'image': images[half], 'index': 128 * half + np.arange(128),
            'chunk': np.full(128, chunk),
        }
        return np.asarray(step(state, batch, rng)['log_px'], np.float64)

    # The mean of P(x|h) over the states sums to one over all images, if the states are
    # the same for both halves.
    first, second = (np.concatenate([log_px(0, i), log_px(1, i)]) for i in (0, 1))
    np.testing.assert_allclose(np.exp([first, second]).sum(axis=1), 1, rtol=1e-5)
    assert np.any(first != second)


def test_mixing_of_a_chain_that_forgets():
    """Catch frames in another order than that of the steps: all noise is new here."""
    config = gsn.Config(layers=(8,), input_noise=1.0, chain_steps=2)
    data = _data()
    s = stochastic.Setting(config, data, stochastic.make_model(config, data))
    judge = Trained(np.asarray, lambda images: images[:, 0, 0, 0] > 127)
    numbers = stochastic_scores.measure_mixing(s, judge, gsn.init(s, _KEY), _KEY)
    assert all(abs(rho) < 0.03 for rho in numbers['autocorrelation'].values())
    assert 30 < numbers['label_changes_per_100_steps'] < 55
    assert numbers['distinct_labels'] == 2


def test_chains_start_from_the_biases():
    """Catch chains from coin flips, which find the negatives of images."""
    data = _data()
    config = gsn.Config(binarize='none', layers=(4, 3))
    s = stochastic.Setting(config, data, stochastic.make_model(config, data))
    state = jax.jit(gsn.build(config, data).init)(_KEY)
    background = np.array([1, 0, 0, 1, 1, 0, 1, 0], np.float32)
    params = {**state.params, 'b0': jnp.asarray(60 * background - 30)}
    rngs = fold_in_each(_KEY, jnp.arange(9))
    x = stochastic.first_images(s, {'params': params}, rngs)
    np.testing.assert_array_equal(x, np.broadcast_to(background, (9, 8)))
    coins = stochastic.first_images(s, {'params': state.params}, rngs)  # biases of zero
    assert 0.3 < coins.mean() < 0.7


def test_one_training_image_has_no_windows():
    """Catch a traceback at the end of a run on two pictures."""
    data = _data()
    one = ArrayExamples(data.splits['train'].images[:1], np.zeros(1, np.int32))
    data = dataclasses.replace(data, splits={**data.splits, 'train': one})
    with pytest.raises(UserError, match='--parzen_samples=0'):
        gsn.build(gsn.Config(binarize='none'), data)
    gsn.build(gsn.Config(binarize='none', parzen_samples=0), data)


def test_grey_images_have_no_likelihood():
    """Catch the nats of bits reported for levels, and levels scaled otherwise."""
    data = dataclasses.replace(_data(), num_values=17)
    s = stochastic.Setting(gsn.Config(layers=(8,), binarize='none'), data, None)
    evaluation = stochastic_scores.make_evaluation(s)
    assert evaluation.log_prob == ''
    numbers = evaluation.summarize({'denoising_nats': np.ones((4, 1))})
    assert numbers == {'denoising_nats': 1.0}
    rngs = fold_in_each(_KEY, jnp.arange(1))
    x = stochastic.flat(s, np.full((1, 2, 4, 1), 8, np.uint8), rngs)
    np.testing.assert_array_equal(x, np.full((1, 8), 0.5))
