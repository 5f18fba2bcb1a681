"""Growth of the sampling time with the size of the image, for three samplers.

    gated_pixel_cnn        one pixel after another, by `incremental`
    multiscale, raster     an 8 x 8 image, then larger ones around its pixels, one pixel
                           after another
    multiscale, parallel   the same, but every doubling in three groups of pixels

The networks have equally many maps and layers, and their initial weights. The samplers
take turns, and a time is the median over the turns, without compilation.

Usage:
    python -m benchmarks.multiscale --out=results/bench_multiscale.json
"""

import argparse
import math
import os
import shlex
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.machine import device_name
from benchmarks.rows import write
from benchmarks.sampling import generator, noise, random_images, seconds
from experiments import gated_pixel_cnn, multiscale_pixel_cnn
from gm_jax.families.setting import Model, first_batch

BASE, NUM_VALUES = 8, 256
WIDTH: dict[str, Any] = dict(features=24, num_layers=4, head=64)


def samplers_of(side: int, batch: int) -> dict[str, tuple[Callable, int]]:
    """Return, by name, a compiled call without arguments and the parameter count."""
    data = random_images((side, side, 1), NUM_VALUES)
    num_stages = int(math.log2(side // BASE))
    models = {
        'gated_pixel_cnn': gated_pixel_cnn.make_model(
            gated_pixel_cnn.Config(**WIDTH), data
        ),
        **{
            f'multiscale, {kind}': multiscale_pixel_cnn.make_model(
                multiscale_pixel_cnn.Config(
                    stages=kind, num_stages=num_stages, **WIDTH
                ), data
            )
            for kind in ('raster', 'parallel')
        },
    }
    return {name: compiled(model, data, batch) for name, model in models.items()}


def compiled(
    model: Model, data: Any, batch: int
) -> tuple[Callable, int]:
    """Compile the sampler of a model; return the call and the parameter count."""
    x, _ = first_batch(data, jax.random.key(0))
    variables = jax.tree.map(jnp.asarray, model.init(jax.random.key(0), x, None))
    uniform = noise(model, data.image_shape, 0, batch)
    generate = generator(model, data.image_shape, batch)
    compiled = generate.lower(variables, uniform).compile()
    number = sum(a.size for a in jax.tree.leaves(variables))
    return lambda: compiled(variables, uniform), number


def main(argv: list[str]) -> None:
    """Time all sizes and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sides', default='16,32,64,128')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--turns', type=int, default=3)
    parser.add_argument('--out', default='results/bench_multiscale.json')
    args = parser.parse_args(argv)
    common = {
        'batch': args.batch, 'num_values': NUM_VALUES, 'turns': args.turns,
        'device': device_name(), 'devices': jax.device_count(),
        'cores': len(os.sched_getaffinity(0)), 'jax': jax.__version__,
        'command': shlex.join(['python', '-m', 'benchmarks.multiscale', *argv]),
    }
    rows = []
    for side in map(int, args.sides.split(',')):
        samplers = samplers_of(side, args.batch)
        turns = [
            {name: seconds(call) for name, (call, _) in samplers.items()}
            for _ in range(args.turns + 1)
        ][1:]
        for name, (_, num_parameters) in samplers.items():
            taken = statistics.median(turn[name] for turn in turns)
            rows.append({
                'model': name, 'side': side, 'seconds': taken,
                'images_per_s': args.batch / taken,
                'num_parameters': num_parameters, **common,
            })
            print(f'{side:4} {name:24} {args.batch / taken:10.2f} images/s', flush=True)
        write(args.out, rows)


if __name__ == '__main__':
    main(sys.argv[1:])
