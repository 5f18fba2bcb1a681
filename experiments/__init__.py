"""One short module per model, each a command: `python -m experiments` lists them."""

import sys

from gm_jax import entry

# In the order of the lecture; `classifier` serves the other experiments.
NAMES = (
    'autoencoder',
    'nade',
    'made',
    'pixel_rnn',
    'pixel_cnn',
    'gated_pixel_cnn',
    'pixel_cnn_pp',
    'multiscale_pixel_cnn',
    'time_series',
    'vae',
    'gan',
    'dcgan',
    'wgan',
    'adversarial_autoencoder',
    'classifier',
)

# Python imports this package first when it is to run one of its modules with `-m`.
if sys.argv[:1] == ['-m'] and any(f'{__name__}.' in arg for arg in sys.orig_argv):
    entry.begin()
