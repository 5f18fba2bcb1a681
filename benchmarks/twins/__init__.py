"""The networks of the experiments, written plainly in PyTorch, to compare speed with.

Plainly: as a careful user of PyTorch writes them, with fused Adam, on every core, the
data in memory and scaled beforehand, and channels last where that is faster.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from gm_jax import keys

__all__ = [
    'adam', 'assign', 'copy_dense', 'copy_mlp', 'dropout_mask', 'example_rngs', 'flat',
    'mlp', 'Noise', 'of_loss', 'prepare', 'Twin', 'unit_range',
]

Noise = Mapping[str, torch.Tensor]


class Twin(NamedTuple):
    """A model of gm_jax in PyTorch.

    Attributes:
        modules: the networks by name.
        copy: takes over the parameters of gm_jax, a tree of NumPy arrays, and its other
            variables.
        load: images [N, H, W, C] uint8, integers from 0 to V - 1 -> all of them as
            training reads them, a tensor [N, ...].
        noise: (key of training, step, B) -> what gm_jax draws in a step of B examples,
            NumPy arrays; {} if nothing.
        draw: B -> fresh noise of the same names and shapes.
        step: (x [B, ...], noise) -> takes one training step, and returns its losses by
            the names that gm_jax logs. Where images have classes, noise['label'] [B] is
            theirs, here and in the next.
        evaluate: (x [B, ...], noise) -> [] loss, without gradients; None where samples
            are evaluated.
        sample: the number of images -> images; None where there is nothing to sample,
            or where a plain sampler needs one pass of the network per value.
    """

    modules: Mapping[str, nn.Module]
    copy: Callable[[Any, Mapping[str, Any]], None]
    load: Callable[[np.ndarray], torch.Tensor]
    noise: Callable[[jax.Array, int, int], dict[str, np.ndarray]]
    draw: Callable[[int], dict[str, torch.Tensor]]
    step: Callable[[torch.Tensor, Noise], dict[str, torch.Tensor]]
    evaluate: Callable[[torch.Tensor, Noise], torch.Tensor] | None
    sample: Callable[[int], torch.Tensor] | None


def of_loss(
    modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer,
    loss: Callable[[torch.Tensor, Noise], torch.Tensor], *,
    copy: Callable[[Any, Mapping[str, Any]], None],
    load: Callable[[np.ndarray], torch.Tensor],
    noise: Callable[[jax.Array, int, int], dict[str, np.ndarray]] = lambda *_: {},
    draw: Callable[[int], dict[str, torch.Tensor]] = lambda batch: {},
    sample: Callable[[int], torch.Tensor] | None = None,
) -> Twin:
    """Make the twin of a model that has one loss; see `Twin`."""

    def step(x: torch.Tensor, noise: Noise) -> dict[str, torch.Tensor]:
        optimizer.zero_grad(set_to_none=True)
        found = loss(x, noise)
        found.backward()
        optimizer.step()
        return {'loss': found.detach()}

    return Twin(
        modules, copy, load, noise, draw, step, torch.no_grad()(loss),
        None if sample is None else torch.no_grad()(sample),
    )


def prepare() -> None:
    """Make PyTorch compute as XLA does: denormals are 0, TF32 where it is available."""
    # Before the threads are made, since they inherit the setting.
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision('high')
    torch.manual_seed(0)


def adam(parameters: Iterable[nn.Parameter], config: Any) -> torch.optim.Adam:
    """Return the optimizer with the settings of an experiment."""
    return torch.optim.Adam(
        parameters, lr=config.learning_rate, fused=True,
        betas=(config.adam_b1, config.adam_b2), eps=config.adam_eps,
    )


def example_rngs(rng: jax.Array, step: int, batch: int) -> jax.Array:
    """Return the keys [B] of the examples of a training step of gm_jax."""
    return keys.example_rngs(rng, jnp.int32(step), jnp.arange(batch))


def flat(images: np.ndarray) -> torch.Tensor:
    """Return bits as [N, D] float32."""
    return torch.from_numpy(images.reshape(len(images), -1)).float()


def unit_range(images: np.ndarray) -> torch.Tensor:
    """Return images of 256 values as [N, D] float32 in [0, 1]."""
    return flat(images).div_(255)


def dropout_mask(
    rngs: jax.Array, path: str, rate: float, shape: tuple[int, ...]
) -> np.ndarray:
    """Return what a dropout of gm_jax multiplies with, 0 or 1 / (1 - rate).

    Args:
        rngs: [B] keys.
        path: of the layer, such as 'Dropout_0'.
        rate: the share that is dropped.
        shape: of an example.

    Returns:
        [B, *shape] float32.
    """
    # As in gm_jax.layers.dropout, which numbers layers by their paths.
    layer = zlib.crc32(path.encode()) & 0x7FFFFFFF

    def keep(rng: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(rng, layer), 1 - rate, shape)

    return np.asarray(jax.vmap(keep)(rngs) / (1 - rate))


def mlp(sizes: Iterable[int], activation: str) -> nn.Sequential:
    """Make dense layers of sizes, with a nonlinearity after each."""
    function = {'relu': nn.ReLU, 'tanh': nn.Tanh, 'sigmoid': nn.Sigmoid}[activation]
    layers: list[nn.Module] = []
    sizes = list(sizes)
    for before, size in zip(sizes, sizes[1:]):
        layers += [nn.Linear(before, size), function()]
    return nn.Sequential(*layers)


def copy_mlp(layers: nn.Sequential, params: Mapping[str, Any]) -> None:
    """Take over the parameters of a `DenseStack` or of any Dense_0, Dense_1, ..."""
    dense = [layer for layer in layers if isinstance(layer, nn.Linear)]
    for number, layer in enumerate(dense):
        copy_dense(layer, params[f'Dense_{number}'])


def copy_dense(layer: nn.Linear, params: Mapping[str, Any]) -> None:
    """Take over 'kernel' [F, G] and, if there is one, 'bias' [G]."""
    assign(layer.weight, np.transpose(params['kernel']))
    if layer.bias is not None:
        assign(layer.bias, params['bias'])


def assign(parameter: torch.Tensor, values: Any) -> None:
    """Copy an array into a parameter of PyTorch.

    Raises:
        ValueError: their shapes differ.
    """
    array = torch.tensor(np.array(values))
    if parameter.shape != array.shape:
        raise ValueError(
            f'the parameter is {list(parameter.shape)}, the values {list(array.shape)}'
        )
    with torch.no_grad():
        parameter.copy_(array)
