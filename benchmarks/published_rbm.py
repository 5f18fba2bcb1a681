"""What a published RBM scores here: its log Z, exact and estimated, and its test nats.

    python -m benchmarks.published_rbm --weights=FILE --data_dir=DIR

FILE is the machine of 500 hidden units that Salakhutdinov and Murray 2008 trained with
CD-25 on MNIST, as an npz of `W` [784, 500], `b` [784] of the visible and `c` [500] of
the hidden units; by its authors log Z is 451.28 and the test set has 86.34 nats. Its
pixels are in the order of columns, so images are transposed.
"""

import argparse
import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import device_name
from benchmarks.rows import write
from gm_jax.data import files, readers, sources
from gm_jax.errors import UserError
from gm_jax.evaluation import ais
from gm_jax.losses import energy
from gm_jax.losses.energy import RBM
from gm_jax.sampling.gibbs import gibbs

PUBLISHED = {'log_partition': 451.28, 'test_nats': 86.34}
SMOOTHING = 0.05  # of the base rates


def read(path: str) -> RBM:
    """Return the machine of a file."""
    arrays = readers.read_npz(files.find(path, flag='weights'), flag='weights')
    return RBM(*(jnp.asarray(arrays[name], jnp.float32) for name in 'Wbc'))


def rows(data_dir: str, split: str) -> jax.Array:
    """Return bits [N, 784] in the order of columns."""
    examples = sources.load('binarized_mnist', data_dir=data_dir).splits[split]
    images = examples.fetch(np.arange(len(examples)))['image']
    return jnp.asarray(images[..., 0].transpose(0, 2, 1).reshape(len(images), -1))


def exact(rbm: RBM, num_hidden: int) -> float:
    """Enumerate log Z of the first hidden units alone, in float64."""
    with jax.enable_x64(True):
        wide = RBM(*(jnp.asarray(np.asarray(x), jnp.float64) for x in rbm))
        part = RBM(
            wide.weights[:, :num_hidden], wide.visible_bias,
            wide.hidden_bias[:num_hidden],
        )
        return float(energy.log_partition_exact(part))


def estimate(
    rbm: RBM, train: jax.Array, args: argparse.Namespace
) -> tuple[dict[str, Any], float]:
    """Estimate log Z forward and in reverse; return numbers and seconds."""
    mean = jnp.mean(train.astype(jnp.float32), axis=0)
    base = jax.scipy.special.logit(mean * (1 - 2 * SMOOTHING) + SMOOTHING)
    rng = jax.random.key(args.seed)

    @jax.jit
    def both(rbm: RBM, base: jax.Array) -> tuple[ais.AIS, ais.AIS]:
        forward = ais.ais_log_partition(
            rng, rbm, base_visible_bias=base, num_chains=args.chains,
            num_temperatures=args.temperatures,
        )
        # Chains from images take many steps to be samples of the machine.
        samples = gibbs(jax.random.fold_in(rng, 2**30), rbm, start, args.sweeps)
        reverse = ais.reverse_ais_log_partition(
            jax.random.fold_in(rng, 2**30 + 1), rbm, samples, base_visible_bias=base,
            num_temperatures=args.temperatures,
        )
        return forward, reverse

    start = train[:args.chains].astype(jnp.float32)
    began = time.monotonic()
    forward, reverse = jax.block_until_ready(both(rbm, base))
    size, log_w = float(forward.effective_sample_size), forward.log_weights
    return {
        'log_partition': float(forward.log_z),
        'log_partition_standard_error': float(forward.standard_error),
        'log_partition_low': float(log_w.mean()),
        'log_partition_high': float(reverse.log_weights.mean()),
        'effective_sample_size': size,
        'log_weights_deviation': float(log_w.std()),
        'alarms': ais.warnings(size, float(log_w.std()), args.chains),
        'ais_temperatures': args.temperatures,
        'ais_chains': args.chains,
    }, time.monotonic() - began


def command(args: argparse.Namespace) -> str:
    """Return the command without the places of files."""
    return (
        f'python -m benchmarks.published_rbm --weights=FILE --data_dir=DIR '
        f'--temperatures={args.temperatures} --chains={args.chains} '
        f'--sweeps={args.sweeps} --seed={args.seed}'
    )


def main(argv: list[str]) -> None:
    """Compute the numbers and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--weights', required=True)
    parser.add_argument('--data_dir', required=True)
    parser.add_argument('--temperatures', type=int, default=10_000)
    parser.add_argument('--chains', type=int, default=100)
    parser.add_argument('--sweeps', type=int, default=3000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', default='results/rbm_published.json')
    args = parser.parse_args(argv)
    try:
        rbm = read(args.weights)
        train, test = (rows(args.data_dir, split) for split in ('train', 'test'))
    except UserError as error:
        parser.error(str(error))
    found, seconds = estimate(rbm, train, args)
    free = jax.jit(energy.free_energy)(rbm, test)
    free = np.asarray(free, np.float64)
    nats, log_z = free.mean(), found['log_partition']
    numbers = {
        'nats_per_image': nats + log_z,
        'nats_standard_error': free.std(ddof=1) / len(free) ** 0.5,
        'estimator': 'ais',
        'nats_bracket': [
            nats + found['log_partition_low'], nats + found['log_partition_high']
        ],
        **found,
    }
    row = {
        'model': 'the RBM of Salakhutdinov and Murray 2008, CD-25, 500 hidden units',
        'dataset': 'binarized_mnist', 'split': 'test', 'num_examples': len(free),
        'metrics': numbers,
        'nats_with_the_published_log_partition': nats + PUBLISHED['log_partition'],
        'published': PUBLISHED,
        'exact_log_partition': {
            f'first {num} hidden units': exact(rbm, num) for num in (16, 20)
        },
        'seconds_of_both_estimates': round(seconds, 1),
        'machine': device_name(),
        'command': command(args),
    }
    print(json.dumps(row, indent=2))
    write(args.out, row)


if __name__ == '__main__':
    main(sys.argv[1:])
