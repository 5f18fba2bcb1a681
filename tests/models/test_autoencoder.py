"""What the three autoencoders can and cannot represent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.losses import reconstruction
from gm_jax.models.autoencoder import Autoencoder, Classifier

NETWORKS = {'linear': (7,), 'deep': (7, 6), 'conv': (3, 4)}


def _images(num, shape):
    return np.random.default_rng(0).uniform(size=(num, *shape)).astype(np.float32)


def _logit(p):
    p = np.asarray(p, np.float64)
    return np.log(p / (1 - p))


def _make(network, shape, latent_dim=2, **kwargs):
    model = Autoencoder(
        shape, network=network, hidden=NETWORKS[network], latent_dim=latent_dim,
        **kwargs,
    )
    return model, jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, *shape)))


def test_the_linear_optimum_is_pca():
    """Catch a hidden nonlinearity, a missing bias or another loss than squared error.

    Without sigmoids, the best decoder and encoder of Z numbers are the Z leading
    principal components: the error is the sum of the other eigenvalues, and there is no
    slope left.
    """
    x = _images(20, (2, 3, 1))
    flat = x.reshape(20, -1).astype(np.float64)
    mean = flat.mean(axis=0)
    _, singular, components = np.linalg.svd(flat - mean, full_matrices=False)
    top = components[:2].T.astype(np.float32)
    params = {
        'code': {'kernel': top, 'bias': np.float32(-mean @ top)},
        'output': {'kernel': top.T, 'bias': mean.astype(np.float32)},
    }
    model, variables = _make('linear', (2, 3, 1), squash=lambda h: h)
    assert jax.tree.structure(params) == jax.tree.structure(variables['params'])

    def loss(params):
        x_hat = model.apply({'params': params}, x)
        return reconstruction.squared_error(x_hat, x).mean()

    value, grad = jax.value_and_grad(loss)(params)
    np.testing.assert_allclose(value, (singular[2:] ** 2).sum() / 20, rtol=1e-5)
    for leaf in jax.tree.leaves(grad):
        np.testing.assert_allclose(leaf, 0, atol=1e-5)
    assert loss(variables['params']) > value


def test_linear_is_one_layer_and_a_sigmoid_each_way():
    """Catch a hidden layer, or a sigmoid left out of the code or of the output."""
    x = _images(12, (4, 3, 1))
    model, variables = _make('linear', (4, 3, 1), latent_dim=3)
    z = model.apply(variables, x, method=Autoencoder.encode)
    x_hat = model.apply(variables, z, method=Autoencoder.decode)
    for inputs, outputs in ((x.reshape(12, -1), z), (z, x_hat.reshape(12, -1))):
        flat = np.concatenate([inputs, np.ones((12, 1))], axis=1)
        logits = _logit(outputs)
        best = np.linalg.lstsq(flat, logits, rcond=None)[0]
        np.testing.assert_allclose(flat @ best, logits, atol=1e-4)
    assert np.linalg.matrix_rank(_logit(x_hat).reshape(12, -1), tol=1e-3) <= 4


@pytest.mark.parametrize('network', NETWORKS)
@pytest.mark.parametrize('shape', [(7, 9, 3), (5, 4, 1)])
def test_odd_images_come_back_in_their_shape(network, shape):
    """Catch a transposed or rounded side, or one example that sees another."""
    x = _images(3, shape)
    model, variables = _make(network, shape)
    z, x_hat = jax.jit(lambda x: (
        model.apply(variables, x, method=Autoencoder.encode),
        model.apply(variables, x),
    ))(x)
    assert z.shape == (3, 2) and x_hat.shape == x.shape
    assert x_hat.min() > 0 and x_hat.max() < 1
    alone = jax.jit(model.apply)(variables, x[2:])
    np.testing.assert_allclose(alone[0], x_hat[2], rtol=1e-5)


@pytest.mark.parametrize('network', NETWORKS)
def test_every_pixel_is_written(network):
    """Catch a border of the image that no number of the code reaches."""
    model, variables = _make(network, (7, 9, 1), latent_dim=8)
    grad = jax.jit(jax.jacfwd(
        lambda z: model.apply(variables, z, method=Autoencoder.decode)
    ))(jnp.ones((1, 8)))
    assert np.all(np.abs(grad).max(axis=(-1, -2)) > 0)


def test_deep_has_the_layers_it_is_given():
    """Catch widths not mirrored in the decoder, for 784-1000-500-250-30 and back."""
    model = Autoencoder((28, 28, 1), hidden=(1000, 500, 250), latent_dim=30)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    sizes = [784, 1000, 500, 250, 30, 250, 500, 1000, 784]
    expected = sum((a + 1) * b for a, b in zip(sizes, sizes[1:]))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


def test_wrong_shapes_raise():
    """Catch an image with its sides swapped, which flattens to as many numbers."""
    model, variables = _make('deep', (4, 3, 1))
    with pytest.raises(AssertionError):
        model.apply(variables, jnp.zeros((2, 3, 4, 1)))
    with pytest.raises(AssertionError):
        model.apply(variables, jnp.zeros((2, 3)), method=Autoencoder.decode)


@pytest.mark.parametrize('network', NETWORKS)
def test_the_classifier_is_a_linear_layer_on_the_codes(network):
    """Catch a decoder in the classifier, or an encoder unlike the autoencoder's."""
    x = _images(3, (4, 5, 1))
    model, variables = _make(network, (4, 5, 1))
    classifier = Classifier(model, num_classes=4)
    params = classifier.init(jax.random.key(2), x)['params']
    trained = {name: variables['params'][name] for name in params['autoencoder']}
    assert not {'decoder', 'output'} & set(trained)
    logits = classifier.apply({'params': {**params, 'autoencoder': trained}}, x)
    z = model.apply(variables, x, method=Autoencoder.encode)
    head = params['head']
    np.testing.assert_allclose(
        logits, z @ head['kernel'] + head['bias'][None], rtol=1e-5, atol=1e-6
    )
