"""The features of FID: the pooled maps of one certain Inception-v3 network.

    weights = inception.load('inception.npz')
    features = inception.features(weights, images)  # uint8 [N, H, W, C] -> [N, 2048]

Only with the weights that Heusel et al. 2017 used, pt_inception-2015-12-05-6726825d.pth
as PyTorch users know them, is a Frechet distance in these features an FID. They are not
part of this package. Where PyTorch is there, this turns that file, whose SHA-256 has to
begin as its name says, into one that needs no PyTorch to read:

    python -m gm_jax.evaluation.inception pt_inception-2015-12-05-6726825d.pth \\
        inception.npz

FORMAT: an npz of float32 arrays under PyTorch's names, for each of 94 convolutions NAME
NAME.conv.weight [G, F, I, J] and NAME.bn.{weight,bias,running_mean,running_var} [G];
and `sha256`, the digest of all of these, 64 characters (see `digest`).

Szegedy et al. 2016, Rethinking the Inception Architecture for Computer Vision,
https://arxiv.org/abs/1512.00567, in the form that was released in 2015: averages leave
the padding out, and the last block pools by the maximum.
"""

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.data import readers
from gm_jax.errors import UserError

NUM_FEATURES = 2048
_SIDE = 299  # of the images that the network was trained on
_PUBLISHED = '6726825d'  # what the SHA-256 of the published file begins with
_BN_EPS = 1e-3
_BN = ('bn.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var')

Weights = Mapping[str, jax.Array | np.ndarray]


def apply(weights: Weights, x: jax.Array) -> jax.Array:
    """Compute the features of images of any size from 75 pixels a side.

    Args:
        weights: as `load` returns them.
        x: [B, H, W, 3] in [-1, 1].

    Returns:
        [B, 2048] float32, 0 or more: the means over the last maps.

    Raises:
        AssertionError: x is not [B, H, W, 3].
    """
    chex.assert_shape(x, (None, None, None, 3))

    def stack(x: jax.Array, name: str, stride: int = 1, pad: bool = False) -> jax.Array:
        return _conv(weights, name, x, stride, 'SAME' if pad else 'VALID')

    x = stack(x, 'Conv2d_1a_3x3', stride=2)
    x = stack(stack(x, 'Conv2d_2a_3x3'), 'Conv2d_2b_3x3', pad=True)
    x = stack(stack(_max_pool(x), 'Conv2d_3b_1x1'), 'Conv2d_4a_3x3')
    x = _max_pool(x)
    for block in ('Mixed_5b', 'Mixed_5c', 'Mixed_5d'):
        x = _branches(weights, block, x, _BLOCK_A, _mean_pool)
    x = _branches(weights, 'Mixed_6a', x, _BLOCK_B, _max_pool)
    for block in ('Mixed_6b', 'Mixed_6c', 'Mixed_6d', 'Mixed_6e'):
        x = _branches(weights, block, x, _BLOCK_C, _mean_pool)
    x = _branches(weights, 'Mixed_7a', x, _BLOCK_D, _max_pool)
    x = _branches(weights, 'Mixed_7b', x, _BLOCK_E, _mean_pool)
    x = _branches(weights, 'Mixed_7c', x, _BLOCK_E, _max_pool_same)
    return x.mean(axis=(1, 2))


# Each branch is a chain of convolutions; one that ends in a tuple ends in both of them,
# side by side. A + marks a stride of 2, without padding. The branch 'pool' is pooled
# first, and is all there is to it where it has no convolutions.
_BLOCK_A = (
    ('branch1x1',), ('branch5x5_1', 'branch5x5_2'),
    ('branch3x3dbl_1', 'branch3x3dbl_2', 'branch3x3dbl_3'), ('pool', 'branch_pool'),
)
_BLOCK_B = (
    ('branch3x3+',), ('branch3x3dbl_1', 'branch3x3dbl_2', 'branch3x3dbl_3+'), ('pool',),
)
_BLOCK_C = (
    ('branch1x1',), ('branch7x7_1', 'branch7x7_2', 'branch7x7_3'),
    tuple(f'branch7x7dbl_{i}' for i in range(1, 6)), ('pool', 'branch_pool'),
)
_BLOCK_D = (
    ('branch3x3_1', 'branch3x3_2+'),
    ('branch7x7x3_1', 'branch7x7x3_2', 'branch7x7x3_3', 'branch7x7x3_4+'), ('pool',),
)
_BLOCK_E = (
    ('branch1x1',), ('branch3x3_1', ('branch3x3_2a', 'branch3x3_2b')),
    ('branch3x3dbl_1', 'branch3x3dbl_2', ('branch3x3dbl_3a', 'branch3x3dbl_3b')),
    ('pool', 'branch_pool'),
)


def _branches(
    weights: Weights, block: str, x: jax.Array, branches: Sequence[Any],
    pool: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Concatenates the branches of a block, each a chain of convolutions of x."""
    def conv(h: jax.Array, name: str) -> jax.Array:
        strided = name.endswith('+')
        return _conv(
            weights, f'{block}.{name.rstrip("+")}', h, 2 if strided else 1,
            'VALID' if strided else 'SAME',
        )

    outputs = []
    for branch in branches:
        h = x
        for step in branch:
            if step == 'pool':
                h = pool(h)
            elif isinstance(step, tuple):
                h = jnp.concatenate([conv(h, name) for name in step], axis=-1)
            else:
                h = conv(h, step)
        outputs.append(h)
    return jnp.concatenate(outputs, axis=-1)


def _conv(
    weights: Weights, name: str, x: jax.Array, stride: int, padding: str
) -> jax.Array:
    """Convolves, normalises by BatchNorm's running averages, cuts off below 0."""
    gain, bias, mean, var = (weights[f'{name}.{part}'] for part in _BN)
    scale = gain * jax.lax.rsqrt(var + _BN_EPS)
    y = jax.lax.conv_general_dilated(
        x, jnp.asarray(weights[f'{name}.conv.weight'] * scale[:, None, None, None]),
        (stride, stride), padding, dimension_numbers=('NHWC', 'OIHW', 'NHWC'),
    )
    return jax.nn.relu(y + (bias - mean * scale)[None, None, None])


def _window(
    x: jax.Array, op: Callable[..., jax.Array], start: float, stride: int, pad: str
) -> jax.Array:
    return jax.lax.reduce_window(
        x, start, op, (1, 3, 3, 1), (1, stride, stride, 1), pad
    )


def _max_pool(x: jax.Array) -> jax.Array:
    return _window(x, jax.lax.max, -jnp.inf, 2, 'VALID')


def _max_pool_same(x: jax.Array) -> jax.Array:
    return _window(x, jax.lax.max, -jnp.inf, 1, 'SAME')


def _mean_pool(x: jax.Array) -> jax.Array:
    """Averages 3 x 3 pixels, of which those outside are not counted."""
    count = _window(jnp.ones_like(x[:1, :, :, :1]), jax.lax.add, 0.0, 1, 'SAME')
    return _window(x, jax.lax.add, 0.0, 1, 'SAME') / count


def features(weights: Weights, images: np.ndarray, batch: int = 50) -> np.ndarray:
    """Compute the features of images of levels 0 to 255.

    They are enlarged (or made smaller) to 299 pixels a side, linearly between pixel
    centres and without a filter, as PyTorch's FID does it.

    Args:
        weights: as `load` returns them.
        images: [N, H, W, C] uint8, of 1 channel or 3.
        batch: how many at a time.

    Returns:
        [N, 2048] float32.

    Raises:
        AssertionError: images is not uint8 of rank 4, with 1 channel or 3.
    """
    chex.assert_rank(images, 4)
    chex.assert_type(images, np.uint8)
    chex.assert_shape(images, (None, None, None, {1, 3}))
    padded = np.concatenate([images, images[:1].repeat(-len(images) % batch, 0)])
    parts = [
        np.asarray(_of_batch(weights, x))
        for x in np.split(padded, len(padded) // batch)
    ]
    return np.concatenate(parts)[:len(images)]


@jax.jit
def _of_batch(weights: Weights, images: jax.Array) -> jax.Array:
    x = jnp.broadcast_to(images.astype(jnp.float32), (*images.shape[:3], 3))
    shape = (len(x), _SIDE, _SIDE, 3)
    x = jax.image.resize(x, shape, 'linear', antialias=False)
    return apply(weights, x / 127.5 - 1)


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of every array that the network needs, by name."""
    return {
        f'{name}.{part}': shape if part == 'conv.weight' else shape[:1]
        for name, shape in _CONVOLUTIONS.items() for part in ('conv.weight', *_BN)
    }


def _of_mixed(block: str, **maps: tuple[int, int, int, int]) -> dict:
    return {f'{block}.{name}': shape for name, shape in maps.items()}


def _block_a(block: str, size: int, pooled: int) -> dict:
    return _of_mixed(
        block, branch1x1=(64, size, 1, 1), branch5x5_1=(48, size, 1, 1),
        branch5x5_2=(64, 48, 5, 5), branch3x3dbl_1=(64, size, 1, 1),
        branch3x3dbl_2=(96, 64, 3, 3), branch3x3dbl_3=(96, 96, 3, 3),
        branch_pool=(pooled, size, 1, 1),
    )


def _block_c(block: str, m: int) -> dict:
    return _of_mixed(
        block, branch1x1=(192, 768, 1, 1), branch7x7_1=(m, 768, 1, 1),
        branch7x7_2=(m, m, 1, 7), branch7x7_3=(192, m, 7, 1),
        branch7x7dbl_1=(m, 768, 1, 1), branch7x7dbl_2=(m, m, 7, 1),
        branch7x7dbl_3=(m, m, 1, 7), branch7x7dbl_4=(m, m, 7, 1),
        branch7x7dbl_5=(192, m, 1, 7), branch_pool=(192, 768, 1, 1),
    )


def _block_e(block: str, size: int) -> dict:
    return _of_mixed(
        block, branch1x1=(320, size, 1, 1), branch3x3_1=(384, size, 1, 1),
        branch3x3_2a=(384, 384, 1, 3), branch3x3_2b=(384, 384, 3, 1),
        branch3x3dbl_1=(448, size, 1, 1), branch3x3dbl_2=(384, 448, 3, 3),
        branch3x3dbl_3a=(384, 384, 1, 3), branch3x3dbl_3b=(384, 384, 3, 1),
        branch_pool=(192, size, 1, 1),
    )


_CONVOLUTIONS = {
    'Conv2d_1a_3x3': (32, 3, 3, 3), 'Conv2d_2a_3x3': (32, 32, 3, 3),
    'Conv2d_2b_3x3': (64, 32, 3, 3), 'Conv2d_3b_1x1': (80, 64, 1, 1),
    'Conv2d_4a_3x3': (192, 80, 3, 3),
    **_block_a('Mixed_5b', 192, 32), **_block_a('Mixed_5c', 256, 64),
    **_block_a('Mixed_5d', 288, 64),
    **_of_mixed(
        'Mixed_6a', branch3x3=(384, 288, 3, 3), branch3x3dbl_1=(64, 288, 1, 1),
        branch3x3dbl_2=(96, 64, 3, 3), branch3x3dbl_3=(96, 96, 3, 3),
    ),
    **_block_c('Mixed_6b', 128), **_block_c('Mixed_6c', 160),
    **_block_c('Mixed_6d', 160), **_block_c('Mixed_6e', 192),
    **_of_mixed(
        'Mixed_7a', branch3x3_1=(192, 768, 1, 1), branch3x3_2=(320, 192, 3, 3),
        branch7x7x3_1=(192, 768, 1, 1), branch7x7x3_2=(192, 192, 1, 7),
        branch7x7x3_3=(192, 192, 7, 1), branch7x7x3_4=(192, 192, 3, 3),
    ),
    **_block_e('Mixed_7b', 1280), **_block_e('Mixed_7c', 2048),
}


def digest(weights: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of the needed arrays, float32 in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(shapes()):
        total.update(name.encode() + np.ascontiguousarray(weights[name], '<f4').data)
    return total.hexdigest()


def load(path: str) -> dict[str, np.ndarray]:
    """Read a weight file and check it against its own digest.

    Args:
        path: of the npz.

    Returns:
        The arrays of `shapes`, float32.

    Raises:
        UserError: there is no such file, an array is missing or of another shape, or
            the contents are not those that the digest was taken of.
    """
    arrays = readers.read_npz(path, flag='inception')
    for name, shape in shapes().items():
        found = arrays[name].shape if name in arrays else None
        if found != shape:
            raise UserError(f'{path} holds {name} as {found}, not as {shape}.')
    weights = {name: arrays[name].astype(np.float32) for name in shapes()}
    if str(arrays.get('sha256')) != digest(weights):
        raise UserError(
            f'{path} is damaged: its contents do not have the digest that it names.'
        )
    return weights


def convert(source: str, path: str) -> None:
    """Write a weight file from PyTorch's; needs PyTorch, which runs no code from it.

    Args:
        source: of pt_inception-2015-12-05-6726825d.pth.
        path: of the npz.

    Raises:
        UserError: the source is not that file.
    """
    try:
        import torch
        with open(source, 'rb') as file:
            found = hashlib.file_digest(file, 'sha256').hexdigest()
    except ImportError:
        raise UserError('PyTorch is not there, which this needs once.') from None
    except OSError as error:
        raise UserError(f'{source} cannot be read: {error}.') from None
    if not found.startswith(_PUBLISHED):
        raise UserError(
            f'{source} has the SHA-256 {found}: the published file has one that begins '
            f'with {_PUBLISHED}.'
        )
    state = torch.load(source, map_location='cpu', weights_only=True)
    weights = {name: state[name].numpy().astype(np.float32) for name in shapes()}
    try:
        np.savez(path, sha256=digest(weights), **weights)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error}.') from None


if __name__ == '__main__':
    try:
        if len(sys.argv) != 3:
            raise UserError('it takes two files: that of PyTorch, and the npz.')
        convert(*sys.argv[1:])
    except UserError as error:
        print(f'inception: {error}', file=sys.stderr)
        sys.exit(2)
