"""The adversarial autoencoder: whole runs, its prior, and what it calls an error."""

import dataclasses
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import adversarial_autoencoder as aae
from gm_jax.data import sources
from gm_jax.families import codes
from gm_jax.models.adversarial_autoencoder import Code, Encoder
from gm_jax.training import train_state
from tests.training import tiny

TINY = (
    '--hidden=16', '--num_steps=4', '--batch_size=16', '--num_samples=8',
    '--log_every=2', '--eval_every=2', '--checkpoint_every=2',
)


@pytest.mark.parametrize('flags, pictures', [
    (
        ('--num_labels=20', '--latent_dim=4', '--batch_norm', '--image_noise=0.3'),
        {'reconstructions', 'styles'},
    ),
    (
        (
            '--num_clusters=12', '--latent_dim=4', '--category_noise=0.3',
            '--batch_norm', '--ema=0.9',
        ),
        {'reconstructions', 'styles'},
    ),
    (('--latent_dim=2', '--prior=mixture'), {'reconstructions', 'codes'}),
])
def test_run_goes_on_with_the_same_bits(flags, pictures, tmp_path):
    """Catch a player or the labelled images that a checkpoint does not hold."""
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    assert aae.main([f'--workdir={whole}', *TINY, *flags]) == 0
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / 'checkpoints' / '4')
    assert aae.main([f'--workdir={stopped}', *TINY, *flags]) == 0
    assert tiny.differences(whole, stopped) == []
    found = {path.stem for path in (whole / 'samples').iterdir()}
    assert pictures <= found
    metrics = json.loads((whole / 'results.json').read_text())['metrics']
    assert ('error_rate' in metrics) == ('--prior=mixture' not in flags)
    assert aae.main([f'--workdir={whole}', '--mode=sample', '--num_samples=4']) == 0
    with np.load(whole / 'samples.npz') as samples:
        of_classes = '--num_labels=20' in flags  # samples of clusters have no class
        assert samples['classes'].tolist() == list('0123456789') * of_classes


def test_pictures_have_room_for_the_categories():
    """Catch a picture that grows with their number, up to a million."""
    data = sources.load('digits')
    batch = {
        'image': data.splits['test'].images[:2], 'label': np.zeros(2, np.int32),
        'index': np.arange(2),
    }

    def shape(num):
        config = aae.Config(num_clusters=num, hidden=(4,), latent_dim=3)
        experiment = aae.build(config, data)
        state = experiment.init(jax.random.key(0))
        return experiment.pictures(state, batch, jax.random.key(1))['styles'].shape

    assert shape(codes._SHOWN - 1) < shape(codes._SHOWN) == shape(codes._SHOWN + 5)


def test_labels_are_learned_from_the_labelled_images_alone(tmp_path):
    """Catch a class taken for another, and labels of images that have none.

    All of a hundred labels are right after a while, and most of the test set.
    """
    flags = (
        f'--workdir={tmp_path}', '--num_labels=100', '--num_steps=300',
        '--eval_every=300', '--hidden=64', '--batch_size=64', '--latent_dim=4',
        '--log_every=100', '--num_samples=8',
    )
    data = sources.load('digits')
    config = aae.Config(num_labels=100)
    seen = aae.labelled_images(config, data)
    assert np.bincount(seen['label']).tolist() == [10] * 10
    assert aae.main(list(flags)) == 0
    metrics = json.loads((tmp_path / 'results.json').read_text())['metrics']
    assert metrics['error_rate'] < 0.3
    kept = tiny.final_arrays(tmp_path)
    np.testing.assert_array_equal(kept['model_state/label'], seen['label'])


def test_a_step_sees_no_other_labels():
    """Catch labels of images that are to have none: they do not change a bit."""
    config = aae.Config(num_labels=20, hidden=(8,), latent_dim=2)
    data = sources.load('digits')
    experiment = aae.build(config, data)
    state, step = experiment.init(jax.random.key(0)), jax.jit(experiment.train_step)
    batch = {
        'image': data.splits['train'].images[None, :16],
        'label': data.splits['train'].labels[None, :16], 'index': jnp.arange(16)[None],
    }
    one, _ = step(state, batch, jax.random.key(1))
    other, _ = step(state, {**batch, 'label': batch['label'] * 0}, jax.random.key(1))
    chex.assert_trees_all_equal(one, other)
    labels = {**state.model_state, 'label': state.model_state['label'] * 0}
    seen, _ = step(state.replace(model_state=labels), batch, jax.random.key(1))
    kernels = [s.params['encoder']['Dense_0']['kernel'] for s in (one, seen)]
    assert (kernels[0] != kernels[1]).any()


def test_batch_norm_averages_the_moments_of_the_images_once_a_step():
    """Catch averages of one player for another, of labelled images, or none.

    After one step they are those of the minibatch by the parameters before it.
    """
    config = aae.Config(num_labels=20, hidden=(8,), latent_dim=2, batch_norm=True)
    data = sources.load('digits')
    experiment = aae.build(config, data)
    state = experiment.init(jax.random.key(0))
    image = data.splits['train'].images[None, :16]
    batch = {
        'image': image, 'label': jnp.zeros((1, 16), int),
        'index': jnp.arange(16)[None],
    }
    after, _ = jax.jit(experiment.train_step)(state, batch, jax.random.key(1))
    players = aae.make_players(config, data, 10)
    seen, expected = (jnp.asarray(image[0], jnp.float32) / (data.num_values - 1),), {}
    for name in ('encoder', 'decoder'):
        variables = {
            'params': state.params[name],
            'batch_stats': state.model_state['batch_stats'][name],
        }
        seen, updated = players[name].apply(
            variables, *seen, train=True, mutable=['batch_stats']
        )
        expected[name] = updated['batch_stats']
        seen = seen if name == 'decoder' else (seen.z, seen.y)
    chex.assert_trees_all_close(
        after.model_state['batch_stats'], expected, rtol=1e-5, atol=1e-6
    )


def test_batch_norm_keeps_every_category_in_use():
    """Catch logits that are not normalised: one category takes all images.

    Over the batch each logit has mean 0 and variance 1, whatever the bias of the last
    layer.
    """
    x, codes_of = jax.random.uniform(jax.random.key(0), (200, 4, 4, 1)), {}
    for batch_norm in (False, True):
        encoder = Encoder(2, 4, hidden=(8,), batch_norm=batch_norm)
        variables = encoder.init(jax.random.key(1), x)
        bias = variables['params']['Dense_0']['bias']
        variables['params']['Dense_0']['bias'] = bias.at[-1].set(20.0)
        codes_of[batch_norm], _ = encoder.apply(
            variables, x, train=True, mutable=['batch_stats']
        )
    assert codes_of[False].y.mean(0)[-1] > 0.99
    assert codes_of[True].y.mean(0)[-1] < 0.5
    np.testing.assert_allclose(codes_of[True].logits.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(codes_of[True].logits.std(0), 1, atol=1e-3)


def test_noise_on_categories_falls_to_zero():
    """Catch noise that stays to the end, and one that a constant rate lets fall."""
    y, rngs = jnp.zeros((2000, 5)), jax.random.split(jax.random.key(0), 2000)
    config = aae.Config(num_clusters=5, category_noise=0.5, num_steps=10)
    constant = dataclasses.replace(config, schedule='constant')
    for config_, step, std in (
        (config, 0, 0.5), (config, 6, 0.2), (config, 10, 0.0), (constant, 10, 0.5),
    ):
        found = aae.instance_noise(config_, y, rngs, jnp.asarray(step))
        np.testing.assert_allclose(found.std(), std, rtol=0.03, atol=1e-6)


def test_log_odds():
    """Catch a formula that saturates where the softmax does."""
    moderate = np.array([[2.0, 0.5, -3.0], [1.0, 1.0, 1.0], [-3.0, 5.0, 2.0]])
    q = np.exp(moderate) / np.exp(moderate).sum(1, keepdims=True)
    found = codes.log_odds(jnp.asarray(moderate, jnp.float32))
    np.testing.assert_allclose(found, np.log(q / (1 - q)), rtol=1e-5, atol=1e-6)
    sure = jnp.array([[30.0, 0.0, 0.0], [40.0, 0.0, 0.0], [40.0, 3.0, 3.0]])
    assert (jax.nn.softmax(sure)[:, 0] == 1).all()
    expected = np.array([30.0, 40.0, 37.0]) - np.log(2)
    np.testing.assert_allclose(codes.log_odds(sure)[:, 0], expected, rtol=1e-6)
    assert np.isposinf(codes.log_odds(jnp.zeros((2, 1)))).all()


# The training images have the classes 7, 3, 3 and 7, the test images 7, 3, 3 and 5; the
# first two lie in cluster 0. In the second case q(y|x) is 1 for all, in float32.
@pytest.mark.parametrize('logits, names, error_rate', [
    (np.log([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55]]), '[7, 3]', 0.5),
    (np.array([[30.0, 0], [40.0, 0], [0, 30.0], [0, 40.0]]), '[3, 7]', 0.75),
])
def test_clusters_are_named_by_their_surest_image(logits, names, error_rate):
    """Catch names by another rule: worked by hand."""
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    train, test = (
        sources.ArrayExamples(images, np.array(labels, np.int32))
        for labels in ([7, 3, 3, 7], [7, 3, 3, 5])
    )
    data = sources.load('digits')
    data = type(data)(
        name='four', image_shape=(1, 1, 1), num_values=256, num_classes=8,
        splits={'train': train, 'test': test},
    )

    class Encoder:
        def apply(self, variables, x):
            found = jnp.asarray(logits)[jnp.rint(255 * x[:, 0, 0, 0]).astype(int)]
            return Code(found, found)

    coder = aae.make_coder(
        aae.Game(aae.Config(num_clusters=2), data, 2, {'encoder': Encoder()})
    )
    state, told = train_state.create({'encoder': {}}, optax.identity()), []
    found = codes.name_clusters(coder, state, jax.random.key(0), 4, told.append)
    # Each cluster has two classes.
    assert found == {'error_rate': error_rate, 'purity': 0.5} and names in told[0]


def test_mixture_prior():
    """Catch petals that are unequal, or elsewhere than on the ring."""
    config = aae.Config(latent_dim=2, prior='mixture')
    z = np.asarray(aae.draw_z(config, jax.random.split(jax.random.key(0), 5000)))
    petal = np.rint(np.arctan2(z[:, 1], z[:, 0]) / (2 * np.pi / 10)).astype(int) % 10
    assert np.abs(np.bincount(petal) - 500).max() < 4.5 * np.sqrt(500)
    angle = 2 * np.pi * petal / 10
    centred = z - 4 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose(centred.std(0), 0.5, rtol=0.05)


@pytest.mark.parametrize('flags, sentence', [
    (('--prior=mixture',), 'pass --latent_dim=2'),
    (('--num_labels=10', '--num_clusters=5'), 'do not go together'),
    (('--num_labels=5000',), '1500 training images'),
    (('--num_labels=10', '--dataset=synthetic:ising'), 'synthetic:ising has no labels'),
    (('--batch_norm', '--batch_size=1'), 'needs a --batch_size of 2 or more'),
])
def test_settings_that_do_not_fit(flags, sentence, tmp_path, capsys):
    """Catch a traceback for what the user can mend."""
    assert aae.main([f'--workdir={tmp_path}/run', *flags]) == 2
    assert sentence in capsys.readouterr().err
