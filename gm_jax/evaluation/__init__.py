"""Test-set likelihood, importance sampling and other measures of a trained model."""

from gm_jax._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, (
    'ais',
    'alarms',
    'checks',
    'csl',
    'forecasts',
    'frechet',
    'inception',
    'kernel_distance',
    'likelihood',
    'mixing',
    'mixture',
    'modes',
    'neighbours',
    'parzen',
    'precision_recall',
    'probe',
))
