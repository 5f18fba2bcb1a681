"""The PixelVAE as a command: its bound, codes, samplers, pictures and alarm."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gm_jax
from experiments import pixel_vae
from gm_jax.data import image_set, sources
from gm_jax.families.density import Mode
from gm_jax.families.variational import Terms
from gm_jax.training import settings

NARROW = ('--features=4', '--decoder_layers=1', '--head=4', '--encoder=4',
          '--latent_dim=3', '--first_kernel=3')
TINY = ('--num_steps=2', '--batch_size=8', '--num_samples=8', '--eval_every=2',
        '--test_samples=20', '--binarize=dynamic', '--test_examples=16', '--seed=1')
DIGITS = sources.load('digits').splits['test']


@pytest.fixture(name='workdir', scope='module')
def make_workdir(tmp_path_factory):
    """Return the work directory of a tiny model."""
    workdir = tmp_path_factory.mktemp('pixel_vae')
    assert pixel_vae.main([f'--workdir={workdir}', *TINY, *NARROW]) == 0
    return workdir


def test_results(workdir):
    """Catch a bound that is called exact, and a collapse that nobody is told of."""
    numbers = json.loads((workdir / 'results.json').read_text())['metrics']
    assert numbers['estimator'] == 'iwae-20' and numbers['importance_samples'] == 20
    total = numbers['reconstruction_nats'] + numbers['kl_nats']
    np.testing.assert_allclose(numbers['negative_elbo_nats'], total, rtol=1e-6)
    assert numbers['nats_per_image'] < numbers['negative_elbo_nats']
    assert len(numbers['kl_nats_per_unit']) == 3
    lines = [json.loads(x) for x in (workdir / 'metrics.jsonl').read_text().split('\n')
             if x]
    last = [line for line in lines if line['split'] == 'train'][-1]
    assert last['kl_weight'] == 1 and last['kl_nats'] < 0.5
    assert 'the decoder ignores z' in last['alarms'][0]
    for name in ('redrawn', 'interpolations'):
        assert (workdir / 'samples' / f'{name}.png').exists()


def test_three_samplers_give_the_same_images(workdir, monkeypatch):
    """Catch a z that is drawn anew in each sweep, or for each sampler."""
    monkeypatch.delattr(sources, 'load')
    drawn = []
    for sampler in ('incremental', 'fixed_point', 'ancestral'):
        flags = (f'--workdir={workdir}', '--mode=sample', f'--sampler={sampler}')
        assert pixel_vae.main([*flags]) == 0
        with np.load(workdir / 'samples.npz') as file:
            drawn.append(file['images'])
            assert str(file['sampler']) == sampler
    np.testing.assert_array_equal(drawn[1], drawn[0])
    np.testing.assert_array_equal(drawn[2], drawn[0])


def test_loaded_run(workdir):
    """Catch other noise than that of the evaluation, and a decoder of its own noise."""
    run = gm_jax.load(workdir)
    rows = image_set.spread(len(DIGITS), 16)  # by --test_examples=16
    numbers, x = run.results['metrics'], DIGITS.images[rows]
    np.testing.assert_allclose(
        -run.log_prob(x).mean(), numbers['nats_per_image'], rtol=1e-6
    )
    np.testing.assert_array_equal(run.sample(8), run.sample(12)[:8])
    z = run.encode(x)
    np.testing.assert_array_equal(run.embed(x), z)
    images = run.decode(z)
    assert z.shape == (16, 3) and images.shape == (16, 8, 8, 1)
    np.testing.assert_array_equal(run.decode(z[3:5]), images[3:5])
    with pytest.raises(ValueError, match='cannot complete images'):
        run.sample(2, given=x // 9, mask=np.ones((8, 8)))


def test_z_is_drawn_for_each_image():
    """Catch one z for all images, and a z that belongs to the place in the batch."""
    config = pixel_vae.Config(
        features=4, decoder_layers=1, head=4, encoder=(4,), latent_dim=3
    )
    experiment = pixel_vae.build(config, sources.load('digits'))
    decoder = pixel_vae.autoregressive.make_setting(
        config, sources.load('digits'), make_model=pixel_vae.make_model
    )._replace(num_latents=3)
    rngs = jax.random.split(jax.random.key(0), 2000)
    z = decoder.condition_of_samples(rngs, None, None)
    np.testing.assert_allclose(z.mean(0), 0, atol=0.1)
    np.testing.assert_allclose(np.cov(z.T), np.eye(3), atol=0.1)
    np.testing.assert_array_equal(
        decoder.condition_of_samples(rngs[5:8], None, None), z[5:8]
    )
    assert experiment.codes.size == 3 and experiment.complete is None


@pytest.mark.parametrize('changes, step, weight', [
    ({'kl_warmup': 0.5}, 0, 0.02), ({'kl_warmup': 0.5}, 24, 0.5),
    ({'kl_warmup': 0.5}, 49, 1), ({'kl_warmup': 0.5}, 80, 1), ({'kl_warmup': 0}, 0, 1),
    ({'kl_warmup': 0, 'free_bits': 0}, 0, 1),
    ({'kl_warmup': 0, 'free_bits': 0.3}, 0, 1),
])
def test_weight_of_the_kl(changes, step, weight):
    """Catch a warm-up in steps instead of a share, and free bits for each example."""
    config = pixel_vae.Config(num_steps=100, **changes)
    s = pixel_vae.Setting(config, None, None, None)
    rng = np.random.default_rng(0)
    kl = jnp.asarray(rng.gamma(0.5, size=(4, 6)), jnp.float32)
    log_px = jnp.asarray(rng.normal(size=(4, 1)), jnp.float32)
    mode = Mode(True, False, jnp.int32(step), jnp.zeros(4, jnp.int32), None)
    loss, metrics = pixel_vae.loss(s, Terms(log_px, kl, log_px, kl), mode)
    cost = np.maximum(np.float64(kl).mean(0), config.free_bits).sum()
    np.testing.assert_allclose(loss, weight * cost - log_px.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics['kl_weight'], weight, rtol=1e-6)


def test_free_bits_are_of_the_whole_batch():
    """Catch a mean KL over the few images of a micro-batch."""
    data = sources.load('digits')
    assert pixel_vae.build(pixel_vae.Config(free_bits=0), data).micro_batch == 2
    assert pixel_vae.build(pixel_vae.Config(free_bits=0.1), data).micro_batch == 0


def test_a_longer_run_has_another_warmup():
    """Catch a run that goes on with more steps, and with a smaller weight again."""
    old, new = (
        pixel_vae.Config(schedule='constant', num_steps=n) for n in (10, 20)
    )
    found, = settings.changed(old, new, 'train')
    assert 'num_steps' in found
    old, new = (
        pixel_vae.Config(schedule='constant', num_steps=n, kl_warmup=0)
        for n in (10, 20)
    )
    assert settings.changed(old, new, 'train') == []


@pytest.mark.parametrize('flags, sentence', [
    (('--class_conditional',), 'takes no --class_conditional'),
    (('--given=x.npz',), 'takes no --given'),
    (('--free_bits=1', '--micro_batch=2'), 'leave out --micro_batch'),
    (('--kl_warmup=2',), 'must be at most 1'),
    (('--kernels=4',), 'must be odd'),
    (('--label=1',), 'needs a model trained with'),
])
def test_mistakes(flags, sentence, tmp_path, capfd):
    """Catch a traceback, or a flag without effect."""
    assert pixel_vae.main([f'--workdir={tmp_path}/run', *flags]) == 2
    error = capfd.readouterr().err
    assert sentence in error and error.count('\n') == 1
    assert not (tmp_path / 'run').exists()
