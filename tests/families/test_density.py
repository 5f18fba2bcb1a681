"""A model with a likelihood of its own, built as docs/tour.md says."""

import dataclasses
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gm_jax.data import binarize
from gm_jax.data.image_set import ImageSet
from gm_jax.evaluation import checks
from gm_jax.families import density
from gm_jax.keys import Use, derive
from gm_jax.layers.pixels import to_uint8
from gm_jax.losses import dequantization, likelihoods
from gm_jax.sampling import latent
from gm_jax.training import command, settings
from gm_jax.training.contracts import Experiment
from gm_jax.training.settings import field
from tests.training import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLAGS = (
    '--hidden=8', '--batch_size=16', '--num_steps=40', '--log_every=10',
    '--eval_every=20', '--checkpoint_every=10', '--num_samples=8', '--ema=0.9',
    '--steps_per_dispatch=10', '--learning_rate=0.01', '--schedule=constant',
)


class Flow(nn.Module):
    """Two additive couplings and a scale: z = f(y), as in NICE (Dinh et al. 2015)."""

    hidden: int

    def setup(self) -> None:
        """Make the networks of the shifts."""
        zeros = nn.initializers.zeros_init()
        self.first = [nn.Dense(self.hidden), nn.Dense(32, kernel_init=zeros)]
        self.second = [nn.Dense(self.hidden), nn.Dense(32, kernel_init=zeros)]
        self.log_scale = self.param('log_scale', zeros, (64,))

    def forward(self, y: jax.Array) -> jax.Array:
        """Map y [B, ...] to z [B, 64]."""
        a, b = jnp.split(y.reshape(len(y), -1), 2, axis=1)
        b = b + self.first[1](nn.relu(self.first[0](a)))
        a = a + self.second[1](nn.relu(self.second[0](b)))
        z = jnp.concatenate([a, b], axis=1) - 0.5
        return z * jnp.exp(self.log_scale)[None]

    def __call__(self, y: jax.Array) -> jax.Array:
        """Compute log p(y) [B]."""
        z = self.forward(y)
        zeros = jnp.zeros_like(z)
        return likelihoods.gaussian_log_prob(zeros, zeros, z) + self.log_scale.sum()

    def inverse(self, z: jax.Array) -> jax.Array:
        """Map z [B, 64] to y [B, 64]."""
        a, b = jnp.split(z * jnp.exp(-self.log_scale)[None] + 0.5, 2, axis=1)
        a = a - self.second[1](nn.relu(self.second[0](b)))
        b = b - self.first[1](nn.relu(self.first[0](a)))
        return jnp.concatenate([a, b], axis=1)


@pytest.fixture(name='main', scope='module')
def make_main() -> command.Command:
    """Return the command that the page's code makes."""
    text = (ROOT / 'docs/tour.md').read_text()
    code, = re.findall(r'```python\n(.*?)```', text, re.S)
    names = dict(
        Flow=Flow, ImageSet=ImageSet, Experiment=Experiment, binarize=binarize,
        Use=Use, command=command, dataclasses=dataclasses, density=density,
        derive=derive, dequantization=dequantization, field=field, jnp=jnp,
        latent=latent, math=math, settings=settings, to_uint8=to_uint8,
        __doc__='A flow.', __name__='flow',
    )
    exec(code, names)
    return names['main']


def test_page_makes_an_experiment(main, tmp_path):
    """Catch a page that no longer holds, and a family that only autoregression fits."""
    whole = tmp_path / 'whole'
    assert main([f'--workdir={whole}', *FLAGS]) == 0
    lines = tiny.metrics(whole)
    losses = [line['loss'] for line in lines if line['split'] == 'train']
    assert losses[-1] < losses[0] - 10
    assert {'loss', 'bits_per_dim', 'grad_norm'} < set(lines[0])
    found = json.loads((whole / 'results.json').read_text())['metrics']
    assert found['estimator'] == 'elbo'
    bits = found['nats_per_image'] / (64 * math.log(2))
    np.testing.assert_allclose(found['bits_per_dim'], bits, rtol=1e-6)
    assert 2 < found['bits_per_dim'] < 6
    stopped = tmp_path / 'stopped'
    assert main([f'--workdir={stopped}', *FLAGS, '--num_steps=20']) == 0
    assert main([f'--workdir={stopped}', *FLAGS]) == 0
    assert tiny.differences(whole, stopped) == []
    assert main([f'--workdir={whole}', '--mode=sample', *FLAGS]) == 0
    with np.load(whole / 'samples.npz') as samples:
        assert samples['images'].shape == (8, 8, 8, 1)
        assert str(samples['sampler']) == 'one pass'


def test_toy_flow_is_one():
    """Catch a toy that is no flow, which would prove nothing."""
    flow, y = Flow(8), jax.random.uniform(jax.random.key(0), (4, 64))
    variables = flow.init(jax.random.key(1), y)
    variables = jax.tree.map(
        lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size)).reshape(a.shape), variables
    )

    def forward(y: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = flow.apply(variables, y, method='forward')
        zeros = jnp.zeros_like(z)
        log_pz = likelihoods.gaussian_log_prob(zeros, zeros, z)
        return z, flow.apply(variables, y) - log_pz

    checks.assert_invertible(
        forward, lambda z: flow.apply(variables, z, method='inverse'), y, atol=1e-4
    )


def test_evaluation_in_parts_is_that_of_the_whole():
    """Catch examples that are mixed up, noise that depends on the part, and a rest."""

    def log_prob(variables, batch, rngs, mode):
        noise = jax.vmap(jax.random.normal)(rngs)
        x = batch['image'].reshape(len(rngs), -1).sum(1)
        return noise * variables['params']['w'] - x, {}

    plain = density.plain(
        lambda rng: {'params': {'w': jnp.ones(())}}, log_prob, 4, 'exact'
    )
    batch = {
        'image': jnp.arange(24.0).reshape(6, 2, 2, 1), 'label': jnp.zeros(6, int),
        'index': jnp.arange(6), 'chunk': jnp.zeros(6, int),
    }
    found = []
    for size in (0, 4):  # which does not divide 6: parts of two
        made = density.build(
            settings.Config(), plain, sample=None, sampler='', single_steps=False,
            micro_batch=size,
        )
        state = made.init(jax.random.key(0))
        for step in (made.evaluation.eval_step, made.evaluation.test_step):
            found.append(step(state, batch, jax.random.key(1)))
    whole, parts = found[:2], found[2:]
    for got, expected in zip(parts, whole):
        assert got.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(got[name], values, strict=True)
