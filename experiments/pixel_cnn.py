"""PixelCNN: exact likelihood by masked convolutions.

van den Oord et al. 2016, Pixel Recurrent Neural Networks.

    python -m experiments.pixel_cnn --workdir=/tmp/pixel_cnn
    python -m experiments.pixel_cnn --workdir=/tmp/pixel_cnn --mode=sample
"""

if __name__ == '__main__':
    from gm_jax import entry

    entry.begin()  # before JAX is imported

import dataclasses
import functools
import sys

from gm_jax.families import autoregressive
from gm_jax.families.pixel_cnn import Config, make_model
from gm_jax.training import command

_PAPER = Config(
    dataset='binarized_mnist', features=16, num_blocks=15, head=32, optimizer='muon',
    batch_size=32, learning_rate=2.5e-3, ema=0.999, num_steps=80_000, log_every=50,
    eval_every=4_000, checkpoint_every=250, eval_batch_size=50,
)
PRESETS = {
    'paper': _PAPER,
    # As was run here: 10 blocks of 5 x 5 kernels have a receptive field of 23 rows up,
    # the 15 blocks above one of 18.
    'hour': dataclasses.replace(
        _PAPER, features=32, num_blocks=10, kernel=5, head=64, num_steps=8_000
    ),
}

main = command.Command(
    'pixel_cnn', __doc__, Config, PRESETS,
    functools.partial(autoregressive.build, make_model=make_model),
)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
