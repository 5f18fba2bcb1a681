"""The one sentence that refuses images whose sides do not fit a network."""

from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError

__all__ = ['check']


def check(data: ImageSet, divisor: int, needed_by: str) -> None:
    """Raise UserError unless the sides of the images are multiples of `divisor`.

    Args:
        data: the image set.
        divisor: the number.
        needed_by: the flag with its value, or the network, which needs this.
    """
    height, width, _ = data.image_shape
    if height % divisor or width % divisor:
        raise UserError(
            f'{needed_by} needs sides that are multiples of {divisor}, and the images '
            f'of {data.name} are {height} x {width}; --image_size resizes the images '
            f'of a folder or a TFDS set.'
        )
