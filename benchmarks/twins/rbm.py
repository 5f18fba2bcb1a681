"""The RBM, trained by persistent contrastive divergence.

The steps are plain ones along the gradient of the centered parametrisation.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import twins
from benchmarks.twins import Noise, Twin
from experiments.rbm import Config
from gm_jax.families import boltzmann
from gm_jax.keys import Use, derive, fold_in_each
from gm_jax.sampling import gibbs

_OFFSET_RATE = 0.01  # as in gm_jax.families.boltzmann


class RBM(nn.Module):
    """The machine, its chains, and the offsets of the centered parametrisation."""

    chains: torch.Tensor
    visible: torch.Tensor
    hidden: torch.Tensor

    def __init__(self, num_visible: int, num_hidden: int, num_chains: int) -> None:
        super().__init__()
        weight = torch.empty(num_visible, num_hidden).normal_(0, 0.01)
        self.weight = nn.Parameter(weight)
        self.b = nn.Parameter(torch.zeros(num_visible))
        self.c = nn.Parameter(torch.zeros(num_hidden))
        self.register_buffer('chains', torch.zeros(num_chains, num_visible))
        self.register_buffer('visible', torch.full((num_visible,), 0.5))
        self.register_buffer('hidden', torch.full((num_hidden,), 0.5))

    def hidden_logits(self, v: torch.Tensor) -> torch.Tensor:
        """Return the log-odds [B, H] of h given v."""
        return torch.addmm(self.c, v, self.weight)

    def free_energy(self, v: torch.Tensor) -> torch.Tensor:
        """Return F(v) [B]."""
        return -(v @ self.b) - F.softplus(self.hidden_logits(v)).sum(1)

    def run(self, v: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Take Gibbs steps from v, with uniform numbers [k, B, H + D]."""
        num = len(self.c)
        for u in draws:
            h = (u[:, :num] < torch.sigmoid(self.hidden_logits(v))).float()
            logits = torch.addmm(self.b, h, self.weight.T)
            v = (u[:, num:] < torch.sigmoid(logits)).float()
        return v


def center(model: RBM) -> None:
    """Turn the gradients into the steps of the centered parametrisation, in place."""
    weight, b, c = (p.grad for p in (model.weight, model.b, model.c))
    assert weight is not None and b is not None and c is not None
    weight.addr_(model.visible, c, alpha=-1).addr_(b, model.hidden, alpha=-1)
    b.addmv_(weight, model.hidden, alpha=-1)
    c.addmv_(weight.T, model.visible, alpha=-1)


def of_machine(
    config: boltzmann.Config, model: RBM,
    copy: Callable[[Any], dict[str, np.ndarray]],
    infer: Callable[[torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor]],
) -> Twin:
    """Make the twin of a machine, with persistent chains, and --optimizer=sgd.

    Args:
        config: the settings.
        model: the machine, as an RBM between u and h.
        copy: the parameters of gm_jax -> those of the RBM of gm_jax.
        infer: (v [B, D], whether this is training) -> u [B, U] and, in evaluations, the
            entropy of what of it is not v.
    """
    num_units = sum(model.weight.shape)

    def copy_all(params: Any, others: Mapping[str, Any]) -> None:
        found = copy(params)
        twins.assign(model.weight, found['weights'])
        twins.assign(model.b, found['visible_bias'])
        twins.assign(model.c, found['hidden_bias'])
        twins.assign(model.chains, others['chains'])
        twins.assign(model.visible, others['offsets']['visible'])
        twins.assign(model.hidden, others['offsets']['hidden'])

    def noise(rng: jax.Array, step: int, batch: int) -> dict[str, np.ndarray]:
        rngs = derive(twins.example_rngs(rng, step, batch), Use.CHAIN)
        draws = [
            gibbs.uniforms(fold_in_each(rngs, i), num_units) for i in range(config.k)
        ]
        return {'u': np.stack(draws)}

    def step(v: torch.Tensor, noise: Noise) -> dict[str, torch.Tensor]:
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            u, _ = infer(v, True)
            end = model.run(model.chains, noise['u'])
            mean = torch.sigmoid(model.hidden_logits(u)).mean(0)
        loss = model.free_energy(u).mean() - model.free_energy(end).mean()
        loss.backward()
        with torch.no_grad():
            center(model)
            model.visible.lerp_(u.mean(0), _OFFSET_RATE)
            model.hidden.lerp_(mean, _OFFSET_RATE)
        model.chains = end
        optimizer.step()
        return {'loss': loss.detach()}

    @torch.no_grad()
    def evaluate(v: torch.Tensor, noise: Noise) -> torch.Tensor:
        del noise
        u, entropy = infer(v, False)
        return (model.free_energy(u) - entropy).mean()  # but for log Z

    @torch.no_grad()
    def sample(num: int) -> torch.Tensor:
        u = torch.bernoulli(model.visible.expand(num, -1))
        for _ in range(config.gibbs_steps):
            u = model.run(u, torch.rand(1, num, num_units))
        return u

    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.learning_rate, fused=True
    )
    return Twin(
        {'model': model}, copy_all, twins.flat, noise,
        lambda batch: {'u': torch.rand(config.k, batch, num_units)},
        step, evaluate, sample,
    )


def make(config: Config, image_shape: tuple[int, int, int]) -> Twin:
    """Make the twin of `experiments.rbm`."""
    model = RBM(math.prod(image_shape), config.hidden, config.batch_size)
    return of_machine(
        config, model, copy=lambda params: params,
        infer=lambda v, train: (v, torch.zeros(len(v))),
    )
