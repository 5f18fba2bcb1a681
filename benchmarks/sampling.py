r"""The cost of samples of the autoregressive models, and the agreement of samplers.

Without `--runs`, networks with their initial weights:

    sample   the time of a batch by `incremental`; `forward_passes` is that time over
             the time of one forward pass of the same network on the same batch (both
             in turns, medians); `compile_seconds` is the compilation of the sampler.
             Images are 28 x 28, and also 14 x 14 and 56 x 56 for the networks whose
             time should grow with the number of pixels.
    compile  the time to compile the sampler for 32 x 32 colour images of 256 values
             (for MADE, binary images)

With `--runs`, work directories of trained models:

    fixed_point  the sweeps that a batch took until nothing changed
    float64      the values of a batch on which the samplers differ in float64: none
    ties         the values of incremental samples that the full network, given the same
                 values before them and the same noise, draws differently. A flip is
                 explained if noise within `TIE` of the true noise gives the sampled
                 value.

Usage:
    python -m benchmarks.sampling --out=results/bench_sampling.json
    python -m benchmarks.sampling --runs=made=/tmp/made,nade=/tmp/nade \
        --out=results/bench_samplers_agree.json
"""

import argparse
import dataclasses
import importlib
import itertools
import math
import os
import pathlib
import shlex
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import device_name
from benchmarks.rows import chosen, write
from experiments import gated_pixel_cnn, made, nade, pixel_cnn, pixel_cnn_pp, pixel_rnn
from gm_jax.data import image_set
from gm_jax.families.autoregressive import generate_and_sweep
from gm_jax.families.setting import Model, first_batch
from gm_jax.sampling import autoregressive
from gm_jax.training import checkpoints, settings

TIE = 1e-5  # the tolerance in noise that is uniform in [0, 1)
BINARY, BYTE = ((28, 28, 1), 2), ((28, 28, 1), 256)
# The networks whose results are published here: module, preset, and the shape and
# number of values of the images that they were trained on.
TIMED = {
    'nade': (nade, 'paper', BINARY),
    'made': (made, 'paper', BINARY),
    'pixel_cnn': (pixel_cnn, 'hour', BINARY),
    'gated_pixel_cnn': (gated_pixel_cnn, 'hour', BINARY),
    'pixel_cnn_pp': (pixel_cnn_pp, 'fashion', BYTE),
    'row_lstm': (pixel_rnn, 'row_lstm', BINARY),
    'diagonal_bilstm': (pixel_rnn, 'paper', BINARY),
}
GROWING = ('pixel_cnn', 'gated_pixel_cnn', 'pixel_cnn_pp')


def random_images(image_shape: tuple, num_values: int) -> image_set.ImageSet:
    """Return an image set of noise, for networks whose initial weights need data."""
    images = np.random.default_rng(0).integers(
        0, num_values, (64, *image_shape), dtype=np.uint8
    )
    examples = image_set.ArrayExamples(images, np.zeros(64, np.int32))
    return image_set.ImageSet(
        name='noise', image_shape=image_shape, num_values=num_values, num_classes=0,
        splits={'train': examples, 'test': examples},
    )


def generator(
    model: Model, image_shape: tuple[int, int, int], batch: int
) -> jax.stages.Wrapped:
    """Return the jitted `(variables, noise) -> images` of `incremental`."""
    generate, _ = generate_and_sweep(model)
    nothing = jnp.zeros((batch, *image_shape), jnp.int32)
    return jax.jit(
        lambda variables, uniform: generate(variables, nothing, nothing > 0, uniform)
    )


def noise(
    model: Model, image_shape: tuple, start: int, batch: int
) -> jax.Array:
    """Return the noise of images start, start + 1, ..."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(0), start + jnp.arange(batch)
    )
    return autoregressive.noise(keys, image_shape, model.distribution.num_noise)


def seconds(fn: Callable, *args: Any) -> float:
    """Time one call."""
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    return time.perf_counter() - start


def time_sampler(
    name: str, image_shape: tuple, num_values: int, batch: int, turns: int
) -> dict[str, Any]:
    """Time `incremental` against the network's forward pass."""
    module, preset, _ = TIMED[name]
    data = random_images(image_shape, num_values)
    model = module.make_model(module.PRESETS[preset], data)
    x, _ = first_batch(data, jax.random.key(0))
    variables = jax.tree.map(jnp.asarray, model.init(jax.random.key(0), x, None))
    x = jnp.resize(x, (batch, *image_shape))
    uniform = noise(model, image_shape, 0, batch)
    generate = generator(model, image_shape, batch)
    forward = jax.jit(
        lambda variables, x: model.apply(variables, x, None, rngs=None, step=0, chunk=0)
    )
    lowered, start = generate.lower(variables, uniform), time.perf_counter()
    sample, compile_seconds = lowered.compile(), time.perf_counter() - start
    seconds(forward, variables, x), seconds(sample, variables, uniform)
    times = [
        (seconds(forward, variables, x), seconds(sample, variables, uniform))
        for _ in range(turns)
    ]
    passes = statistics.median(b / a for a, b in times)
    taken = statistics.median(b for _, b in times)
    return {
        'model': name, 'what': 'sample', 'batch': batch,
        'image_shape': list(image_shape), 'num_values': num_values,
        'num_parameters': sum(a.size for a in jax.tree.leaves(variables)),
        'seconds': taken, 'images_per_s': batch / taken,
        'forward_seconds': statistics.median(a for a, _ in times),
        'forward_passes': round(passes, 2),
        'passes_of_ancestral': math.prod(image_shape),
        'compile_seconds': round(compile_seconds, 2), 'turns': turns,
    }


def time_compile(name: str) -> dict[str, Any]:
    """Time the compilation of the sampler for 32 x 32 images."""
    module, preset, _ = TIMED[name]
    # MADE's direct weights for 256 values of 3072 colours would be 9.7 GB.
    image_shape, values = ((32, 32, 1), 2) if name == 'made' else ((32, 32, 3), 256)
    config = module.PRESETS[preset]
    if name not in ('nade', 'made', 'pixel_cnn_pp'):
        config = dataclasses.replace(config, features=3 * (config.features // 3))
    data = random_images(image_shape, values)
    model = module.make_model(config, data)
    x, _ = first_batch(data, jax.random.key(0))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, None))
    generate, start = generator(model, image_shape, 64), time.perf_counter()
    generate.lower(variables, noise(model, image_shape, 0, 64)).compile()
    return {
        'model': name, 'what': 'compile', 'batch': 64,
        'image_shape': list(image_shape), 'num_values': values,
        'seconds': round(time.perf_counter() - start, 2),
    }


def trained(name: str, workdir: str) -> tuple[Any, Callable, Any]:
    """Return (image set, dtype -> model, variables) of a run's last checkpoint."""
    directory = pathlib.Path(workdir)
    module = importlib.import_module(f'experiments.{name}')
    config = settings.load(str(directory / 'config.json'), module.Config)
    data = image_set.read_facts(str(directory / 'data.json'))
    experiment = module.main.build(config, data)
    shapes = jax.eval_shape(experiment.init, jax.random.key(0))
    found = checkpoints.restore(workdir, shapes)
    if found is None:
        raise SystemExit(f'{workdir} has no checkpoint')
    variables = found.state.eval_variables

    def make_model(dtype: str) -> Model:
        # Not a Config, which has no float64 because nothing is trained in float64.
        other = types.SimpleNamespace(**{**vars(config), 'dtype': dtype})
        return module.make_model(other, data)

    return data, make_model, jax.tree.map(np.asarray, variables)


def nearby(uniform: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the noise with each number of a pixel shifted by -TIE, 0 or TIE."""
    for signs in itertools.product((-1, 0, 1), repeat=uniform.shape[-1]):
        yield np.clip(uniform + TIE * np.array(signs, np.float32), 0, 1 - 2**-24)


def flips_in_float64(
    make_model: Callable, variables: Any, image_shape: tuple, batch: int
) -> int:
    """Count the values of a batch on which the samplers differ in float64."""
    with jax.enable_x64(True):
        model = make_model('float64')
        variables = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), variables)
        sweep = jax.jit(generate_and_sweep(model)[1])
        uniform = noise(model, image_shape, 0, batch)
        nothing = np.zeros((batch, *image_shape), np.int32)
        solved, _ = autoregressive.fixed_point(
            lambda x: sweep(variables, x, uniform), nothing, nothing > 0
        )
        sampled = generator(model, image_shape, batch)(variables, uniform)
        return int(np.sum(solved != np.asarray(sampled)))


def check_run(
    name: str, workdir: str, batch: int, num_values: int
) -> list[dict[str, Any]]:
    """Count sweeps until the fixed point, and flips among `num_values` values."""
    data, make_model, variables = trained(name, workdir)
    model, shape = make_model('float32'), data.image_shape
    generate = generator(model, shape, batch)
    sweep = jax.jit(generate_and_sweep(model)[1])
    common = {'model': name, 'dataset': data.name, 'image_shape': list(shape),
              'num_values': data.num_values, 'batch': batch}
    uniform = noise(model, shape, 0, batch)
    nothing = np.zeros((batch, *shape), np.int32)
    solved, sweeps = autoregressive.fixed_point(
        lambda x: sweep(variables, x, uniform), nothing, nothing > 0
    )
    same = int(np.sum(solved == np.asarray(generate(variables, uniform))))
    rows = [{**common, 'what': 'fixed_point', 'sweeps': sweeps,
             'passes_of_ancestral': math.prod(shape),
             'values_that_incremental_draws_too': f'{same} of {solved.size}'},
            {**common, 'what': 'float64', 'values': solved.size,
             'flips': flips_in_float64(make_model, variables, shape, batch)}]
    flips = explained = done = 0
    while done < num_values:
        uniform = noise(model, shape, done, batch)
        x = np.asarray(generate(variables, uniform))
        flipped = np.asarray(sweep(variables, x, uniform)) != x
        done, flips = done + x.size, flips + int(flipped.sum())
        if flipped.any():
            low, high = np.full_like(x, data.num_values), np.full_like(x, -1)
            for moved in nearby(np.asarray(uniform)):
                drawn = np.asarray(sweep(variables, x, moved))
                low, high = np.minimum(low, drawn), np.maximum(high, drawn)
            # Draws rise with the noise: noise in between draws the values in between.
            near = (low <= x) & (x <= high)
            explained += int((flipped & near).sum())
        print(f'{name}: {done} values, {flips} flips, {explained} explained', end='\r')
    print()
    rows.append({**common, 'what': 'ties', 'values': done, 'flips': flips,
                 'flips_within_a_tie': explained, 'tie': TIE,
                 'flips_per_million': round(1e6 * flips / done, 3)})
    return rows


def main(argv: list[str]) -> None:
    """Time the samplers or check the runs, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', default=','.join(TIMED))
    parser.add_argument('--runs', default='', help='such as made=DIR,nade=DIR')
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--turns', type=int, default=5)
    parser.add_argument('--num_values', type=int, default=10_000_000)
    parser.add_argument('--out', required=True)
    args = parser.parse_args(argv)
    runs = [run.partition('=') for run in args.runs.split(',') if run]
    if any(not workdir for _, _, workdir in runs):
        parser.error('--runs must be such as made=DIR,nade=DIR')
    models = [] if runs else chosen(parser, '--models', args.models, TIMED)
    command = shlex.join(['python', '-m', 'benchmarks.sampling', *argv])
    common = {'device': device_name(), 'devices': jax.device_count(),
              'cores': len(os.sched_getaffinity(0)), 'jax': jax.__version__,
              'command': command}
    rows: list[dict[str, Any]] = []

    def add(found: list[dict[str, Any]]) -> None:
        rows.extend({**row, **common} for row in found)
        write(args.out, rows)
        print(found, flush=True)

    for name, _, workdir in runs:
        add(check_run(name, workdir, args.batch, args.num_values))
    for name in models:
        (_, width, channels), values = TIMED[name][2]
        for size in (width // 2, width, 2 * width) if name in GROWING else (width,):
            shape = (size, size, channels)
            add([time_sampler(name, shape, values, args.batch, args.turns)])
        add([time_compile(name)])


if __name__ == '__main__':
    main(sys.argv[1:])
