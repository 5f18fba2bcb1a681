"""The deep Boltzmann machine, an RBM between u = (v, h2) and h1 with mean-field h2."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.twins import Twin, rbm
from experiments.dbm import Config, machine


def make(config: Config, image_shape: tuple[int, int, int]) -> Twin:
    """Make the twin of `experiments.dbm`; see `benchmarks.twins.rbm`.

    The weights of both layers are one parameter, to which the steps are the same.
    """
    num_dims, (first, second) = math.prod(image_shape), config.hidden
    model = rbm.RBM(num_dims + second, first, config.batch_size)

    def infer(v: torch.Tensor, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        weight1, weight2 = model.weight[:num_dims], model.weight[num_dims:]
        c2 = model.b[num_dims:]
        from_v = v @ weight1

        def up(logits: torch.Tensor) -> torch.Tensor:
            return torch.addmm(c2, torch.sigmoid(logits), weight2.T)

        logits = up(2 * from_v + model.c)
        for _ in range(
            config.mean_field_steps if train else config.test_mean_field_steps
        ):
            logits = up(from_v + torch.addmm(model.c, torch.sigmoid(logits), weight2))
        q = torch.sigmoid(logits)
        u = torch.cat([v, q], dim=1)
        if train:
            return u, torch.zeros(len(v))
        return u, (F.softplus(logits) - q * logits).sum(1)

    def copy(params: Any) -> dict[str, np.ndarray]:
        return {
            name: np.asarray(a) for name, a in machine(params)._asdict().items()
        }

    return rbm.of_machine(config, model, copy, infer)
