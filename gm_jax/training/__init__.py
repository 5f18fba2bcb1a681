"""Everything between a pure loss function and a finished run."""

from gm_jax._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, (
    'checkpoints',
    'command',
    'contracts',
    'dispatch',
    'distributed',
    'evaluate',
    'fits',
    'flags',
    'game',
    'loop',
    'optimizer',
    'orbax_errors',
    'outcome',
    'parallel',
    'processes',
    'progress',
    'recorder',
    'runs',
    'screen',
    'sealed',
    'settings',
    'signals',
    'sizes',
    'train_state',
    'version',
    'watch',
    'workdir',
    'writers',
))
