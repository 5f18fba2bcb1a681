"""One short module per model, each a command: `python -m experiments` lists them.

`compare` and `compare_runs` are commands as well: one trains every model on one image
set, the other makes a table of what runs have left.
"""

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
    'nice',
    'real_nvp',
    'vae',
    'pixel_vae',
    'rbm',
    'dbm',
    'gsn',
    'gan',
    'dcgan',
    'wgan',
    'adversarial_autoencoder',
    'classifier',
)
