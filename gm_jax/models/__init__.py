"""One file per model: Flax modules, which are pure functions of variables and arrays.

`rbm` and `dbm` have no module: they make the parameters of an energy, which is in
`losses.energy`. `players` holds the interfaces of the networks of a game.
"""

from gm_jax._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, (
    'adversarial_autoencoder',
    'autoencoder',
    'classifier',
    'dbm',
    'dcgan',
    'dequantizer',
    'gan',
    'gated_pixel_cnn',
    'gsn',
    'infogan',
    'made',
    'multiscale_pixel_cnn',
    'nade',
    'nice',
    'pixel_cnn',
    'pixel_cnn_pp',
    'pixel_rnn',
    'pixel_vae',
    'players',
    'rbm',
    'real_nvp',
    'vae',
))
