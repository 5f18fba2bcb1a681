"""Image sets (`sources`) and the order in which steps read them (`pipeline`)."""

from gm_jax._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, (
    'binarize',
    'decoding',
    'files',
    'folder',
    'hints',
    'image_set',
    'originals',
    'pipeline',
    'prepare',
    'prepared',
    'readers',
    'sources',
    'splits',
    'synthetic',
    'tfds_writer',
))
