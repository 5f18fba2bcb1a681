"""One file per paper: linen modules that return distribution parameters.

Boltzmann machines, `rbm` and `dbm`, are functions of their energies instead.
`players` holds the interfaces of the networks that play a game.
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
