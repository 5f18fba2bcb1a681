r"""The features of FID: the pooled maps of one particular Inception-v3 network.

    weights = inception.load('inception.npz')
    features = inception.features(weights, images)  # uint8 [N, H, W, C] -> [N, 2048]

A Frechet distance in these features is an FID only with the weights that Heusel et al.
2017 used, known to PyTorch users as pt_inception-2015-12-05-6726825d.pth. They are not
part of this package. If PyTorch is installed, this command converts that file, whose
SHA-256 must begin with the digits in its name, to one that is read without PyTorch:

    python -m gm_jax.evaluation.inception pt_inception-2015-12-05-6726825d.pth \
        inception.npz

FORMAT: an npz of float32 arrays under PyTorch's names. For each of 94 convolutions NAME
there are NAME.conv.weight [G, F, I, J] and
NAME.bn.{weight,bias,running_mean,running_var} [G]. The entry `sha256` is the digest of
all of these, 64 characters (see `digest`).

Szegedy et al. 2016, Rethinking the Inception Architecture for Computer Vision,
https://arxiv.org/abs/1512.00567, in the form that was released in 2015: average pooling
leaves the padding out, and the last block uses max pooling.
"""

import hashlib
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.data import readers
from gm_jax.errors import UserError

__all__ = [
    'apply', 'convert', 'digest', 'features', 'load', 'NUM_FEATURES', 'shapes',
    'Weights',
]

NUM_FEATURES = 2048
_SIDE = 299  # pixels per side of the images that the network was trained on
_PUBLISHED = '6726825d'  # the first digits of the SHA-256 of the published file
_BN_EPS = 1e-3
_BN = ('bn.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var')

Weights = Mapping[str, jax.Array | np.ndarray]


def apply(weights: Weights, x: jax.Array) -> jax.Array:
    """Compute the features of images with at least 75 pixels per side.

    Args:
        weights: the weights as returned by `load`.
        x: [B, H, W, 3] in [-1, 1].

    Returns:
        [B, 2048] float32, 0 or more: the spatial means of the last maps.

    Raises:
        AssertionError: x is not [B, H, W, 3].
    """
    chex.assert_shape(x, (None, None, None, 3))

    for block, branches in _NETWORK.items():
        x = jnp.concatenate(
            [_apply_branch(weights, block, branch, x) for branch in branches], axis=-1
        )
    return x.mean(axis=(1, 2))


class _Conv(NamedTuple):
    """A convolution, then BatchNorm and ReLU.

    Attributes:
        name: the name within its block.
        maps: G, the number of output maps.
        size: (I, J), the size of the kernel.
        stride: the stride along both axes.
        padding: 'SAME' or 'VALID'.
    """

    name: str
    maps: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = 'SAME'

    def path(self, block: str) -> str:
        """Return the name that PyTorch has for it."""
        return f'{block}.{self.name}' if block else self.name


_Pool = Callable[[jax.Array], jax.Array]
# Steps in sequence; the convolutions in a list run in parallel and are concatenated.
_Branch = tuple[_Conv | list[_Conv] | _Pool, ...]


def _apply_branch(
    weights: Weights, block: str, branch: _Branch, x: jax.Array
) -> jax.Array:
    for step in branch:
        if isinstance(step, _Conv):
            x = _apply_conv(weights, block, step, x)
        elif isinstance(step, list):
            outputs = [_apply_conv(weights, block, conv, x) for conv in step]
            x = jnp.concatenate(outputs, axis=-1)
        else:
            x = step(x)
    return x


def _apply_conv(weights: Weights, block: str, conv: _Conv, x: jax.Array) -> jax.Array:
    """Convolve, normalise by BatchNorm's running averages and apply ReLU."""
    name = conv.path(block)
    gain, bias, mean, var = (weights[f'{name}.{part}'] for part in _BN)
    scale = gain * jax.lax.rsqrt(var + _BN_EPS)
    y = jax.lax.conv_general_dilated(
        x, jnp.asarray(weights[f'{name}.conv.weight'] * scale[:, None, None, None]),
        (conv.stride, conv.stride), conv.padding,
        dimension_numbers=('NHWC', 'OIHW', 'NHWC'),
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
    """Average 3 x 3 pixels; those outside the image are not counted."""
    count = _window(jnp.ones_like(x[:1, :, :, :1]), jax.lax.add, 0.0, 1, 'SAME')
    return _window(x, jax.lax.add, 0.0, 1, 'SAME') / count


def _same(name: str, maps: int, height: int, width: int) -> _Conv:
    return _Conv(name, maps, (height, width))


def _valid(name: str, maps: int, stride: int = 2) -> _Conv:
    return _Conv(name, maps, (3, 3), stride, 'VALID')


def _block_a(pooled: int) -> tuple[_Branch, ...]:
    return (
        (_Conv('branch1x1', 64),),
        (_Conv('branch5x5_1', 48), _same('branch5x5_2', 64, 5, 5)),
        (
            _Conv('branch3x3dbl_1', 64), _same('branch3x3dbl_2', 96, 3, 3),
            _same('branch3x3dbl_3', 96, 3, 3),
        ),
        (_mean_pool, _Conv('branch_pool', pooled)),
    )


def _block_c(m: int) -> tuple[_Branch, ...]:
    return (
        (_Conv('branch1x1', 192),),
        (
            _Conv('branch7x7_1', m), _same('branch7x7_2', m, 1, 7),
            _same('branch7x7_3', 192, 7, 1),
        ),
        (
            _Conv('branch7x7dbl_1', m), _same('branch7x7dbl_2', m, 7, 1),
            _same('branch7x7dbl_3', m, 1, 7), _same('branch7x7dbl_4', m, 7, 1),
            _same('branch7x7dbl_5', 192, 1, 7),
        ),
        (_mean_pool, _Conv('branch_pool', 192)),
    )


def _block_e(pool: _Pool) -> tuple[_Branch, ...]:
    return (
        (_Conv('branch1x1', 320),),
        (
            _Conv('branch3x3_1', 384),
            [_same('branch3x3_2a', 384, 1, 3), _same('branch3x3_2b', 384, 3, 1)],
        ),
        (
            _Conv('branch3x3dbl_1', 448), _same('branch3x3dbl_2', 384, 3, 3),
            [_same('branch3x3dbl_3a', 384, 1, 3), _same('branch3x3dbl_3b', 384, 3, 1)],
        ),
        (pool, _Conv('branch_pool', 192)),
    )


# The branches of each block run in parallel and are concatenated.
_NETWORK: dict[str, tuple[_Branch, ...]] = {
    '': ((
        _valid('Conv2d_1a_3x3', 32), _valid('Conv2d_2a_3x3', 32, 1),
        _same('Conv2d_2b_3x3', 64, 3, 3), _max_pool,
        _Conv('Conv2d_3b_1x1', 80), _valid('Conv2d_4a_3x3', 192, 1), _max_pool,
    ),),
    'Mixed_5b': _block_a(32), 'Mixed_5c': _block_a(64), 'Mixed_5d': _block_a(64),
    'Mixed_6a': (
        (_valid('branch3x3', 384),),
        (
            _Conv('branch3x3dbl_1', 64), _same('branch3x3dbl_2', 96, 3, 3),
            _valid('branch3x3dbl_3', 96),
        ),
        (_max_pool,),
    ),
    'Mixed_6b': _block_c(128), 'Mixed_6c': _block_c(160),
    'Mixed_6d': _block_c(160), 'Mixed_6e': _block_c(192),
    'Mixed_7a': (
        (_Conv('branch3x3_1', 192), _valid('branch3x3_2', 320)),
        (
            _Conv('branch7x7x3_1', 192), _same('branch7x7x3_2', 192, 1, 7),
            _same('branch7x7x3_3', 192, 7, 1), _valid('branch7x7x3_4', 192),
        ),
        (_max_pool,),
    ),
    'Mixed_7b': _block_e(_mean_pool), 'Mixed_7c': _block_e(_max_pool_same),
}


def features(weights: Weights, images: np.ndarray, batch: int = 50) -> np.ndarray:
    """Compute the features of images with values 0 to 255.

    The images are resized to 299 pixels per side by linear interpolation between pixel
    centres without an antialiasing filter, as in PyTorch's FID.

    Args:
        weights: the weights as returned by `load`.
        images: [N, H, W, C] uint8, with 1 channel or 3.
        batch: the number of images per batch.

    Returns:
        [N, 2048] float32.

    Raises:
        AssertionError: images is not uint8 of rank 4, with 1 channel or 3, or empty.
    """
    chex.assert_rank(images, 4)
    chex.assert_type(images, np.uint8)
    chex.assert_scalar_positive(len(images))
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
    found: dict[str, tuple[int, ...]] = {}
    block_maps = 3
    for block, branches in _NETWORK.items():
        outputs = 0
        for branch in branches:
            maps = block_maps
            for step in branch:
                convs = [step] if isinstance(step, _Conv) else step
                if isinstance(convs, list):
                    for conv in convs:
                        name = conv.path(block)
                        found[f'{name}.conv.weight'] = (conv.maps, maps, *conv.size)
                        found.update({f'{name}.{part}': (conv.maps,) for part in _BN})
                    maps = sum(conv.maps for conv in convs)
            outputs += maps
        block_maps = outputs
    return found


def digest(weights: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of the needed arrays, as float32 and sorted by name."""
    total = hashlib.sha256()
    for name in sorted(shapes()):
        total.update(name.encode() + np.ascontiguousarray(weights[name], '<f4').data)
    return total.hexdigest()


def load(path: str) -> dict[str, np.ndarray]:
    """Read a weight file and check it against its own digest.

    Args:
        path: the path of the npz.

    Returns:
        The arrays of `shapes`, float32.

    Raises:
        UserError: there is no such file, an array is missing or has another shape, or
            the contents do not match the digest.
    """
    arrays = readers.read_npz(path, flag='inception')
    for name, shape in shapes().items():
        found = arrays[name].shape if name in arrays else None
        if found != shape:
            raise UserError(f'{path} holds {name} as {found}, not as {shape}.')
    weights = {name: arrays[name].astype(np.float32) for name in shapes()}
    if str(arrays.get('sha256')) != digest(weights):
        raise UserError(
            f'{path} is damaged: its contents do not match the digest stored in it.'
        )
    return weights


def convert(source: str, path: str) -> None:
    """Convert PyTorch's weight file; needs PyTorch, which runs no code from the file.

    Args:
        source: the path of pt_inception-2015-12-05-6726825d.pth.
        path: the path of the npz to write.

    Raises:
        UserError: the source is not that file.
    """
    try:
        import torch
        with open(source, 'rb') as file:
            found = hashlib.file_digest(file, 'sha256').hexdigest()
    except ImportError:
        raise UserError('Install PyTorch: the conversion needs it once.') from None
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
            raise UserError("it takes two files: PyTorch's and the npz to write.")
        convert(*sys.argv[1:])
    except UserError as error:
        print(f'inception: {error}', file=sys.stderr)
        sys.exit(2)
