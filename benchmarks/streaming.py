"""The speed and the memory of reading a set that does not fit in memory.

Writes generated 32x32x3 images as a prepared TFDS set of several shards, unless the set
is there already, and reads them in training order as a run would:

    python -m benchmarks.streaming --num_images=2000000 --dir=/tmp/stream --out=FILE
"""

import argparse
import glob
import json
import os
import resource
import shlex
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.rows import write
from gm_jax.data import pipeline, sources, tfds_writer
from gm_jax.errors import UserError

NAME = 'generated'
SHAPE = (32, 32, 3)
_NUM_TEST = 1000
_CHUNK = 4096


def generate(seed: int, num: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images: a ramp per colour plus noise, about as hard for PNG as photos.

    Args:
        seed: the seed of the images.
        num: N, the number of images over all parts.

    Yields:
        Images uint8 [n, 32, 32, 3] and labels int64 [n] in 0 ... 9.
    """
    rng = np.random.default_rng(seed)
    down, right, _ = np.meshgrid(*(np.arange(n, dtype=np.uint8) for n in SHAPE),
                                 indexing='ij')
    for start in range(0, num, _CHUNK):
        n = min(_CHUNK, num - start)
        level, slope_down, slope_right = (
            rng.integers(0, high, (n, 1, 1, SHAPE[2]), dtype=np.uint8)
            for high in (116, 3, 3)
        )
        # 115 + 2 * 31 + 2 * 31 + 15 = 254 at most, so that nothing wraps.
        noise = np.frombuffer(rng.bytes(n * down.size), np.uint8) % 16
        images = noise.reshape(n, *SHAPE) + level
        images += slope_down * down
        images += slope_right * right
        yield images, rng.integers(0, 10, n)


def resident_mb() -> float:
    """Return the resident memory of this process in MiB, without mapped files."""
    with open('/proc/self/status') as status:
        fields = dict(line.split(':', 1) for line in status)
    return int(fields['RssAnon'].split()[0]) / 1024


def measure(
    directory: str, num_images: int, batch_size: int, num_threads: int, seconds: float
) -> dict[str, Any]:
    """Read one epoch, or as much of it as the time allows, as training would.

    Args:
        directory: the data_dir of the set.
        num_images: how many images it must have.
        batch_size: B.
        num_threads: threads that read and decode.
        seconds: the time after which to stop.

    Returns:
        The figures of a row, with `resident_mb` at the start and after each tenth of
        the epoch.

    Raises:
        UserError: the set has another number of images, or they are fewer than a batch.
    """
    data = sources.load(NAME, data_dir=directory, memory_limit=0)
    examples = data.splits['train']
    if len(examples) != num_images:
        raise UserError(
            f'{directory} has a set of {len(examples)} images already: use another '
            f'--dir for --num_images={num_images}.'
        )
    num_steps = num_images // batch_size
    marks = {round(num_steps * tenth / 10) for tenth in range(1, 11)}
    if not num_steps:
        raise UserError(f'--num_images={len(examples)} are fewer than a batch.')
    stream = pipeline.stream_batches(
        examples, seed=0, first_step=0, batch_size=batch_size, num_threads=num_threads
    )
    next(stream)  # starts the threads
    memory = [round(resident_mb(), 1)]
    start, cpu = time.perf_counter(), time.process_time()
    for step in range(1, num_steps + 1):
        next(stream)
        elapsed = time.perf_counter() - start
        if step in marks:
            memory.append(round(resident_mb(), 1))
        if elapsed > seconds:
            break
    used = time.process_time() - cpu
    stream.close()
    return {
        'what': 'stream', 'device': 'cpu', 'batch': batch_size,
        'image_shape': list(data.image_shape), 'num_images': len(examples),
        'images_read': step * batch_size, 'num_threads': num_threads,
        'seconds': round(elapsed, 1), 'cpu_seconds': round(used, 1),
        'images_per_s': round(step * batch_size / elapsed),
        'images_per_cpu_s': round(step * batch_size / used),
        'resident_mb': memory,
        # The peak of the whole process, with the mapped files.
        'peak_mb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def main(argv: list[str]) -> None:
    """Write the set and the row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--num_images', type=int, default=20_000)
    parser.add_argument('--dir', required=True, help='where to write the set')
    parser.add_argument('--batch_size', type=int, default=128)
    parser.add_argument('--num_threads', type=int, default=4)
    parser.add_argument('--seconds', type=float, default=600, help='time to read for')
    parser.add_argument('--out', required=True)
    args = parser.parse_args(argv)
    if not glob.glob(os.path.join(args.dir, NAME, '*', 'dataset_info.json')):
        splits = {
            'train': generate(0, args.num_images), 'test': generate(1, _NUM_TEST)
        }
        start = time.perf_counter()
        tfds_writer.write(
            args.dir, NAME, splits, image_shape=SHAPE, num_classes=10
        )
        print(f'wrote the set in {time.perf_counter() - start:.0f} s')
    try:
        row = measure(
            args.dir, args.num_images, args.batch_size, args.num_threads, args.seconds
        )
    except UserError as error:
        parser.error(str(error))
    row['command'] = shlex.join(['python', '-m', 'benchmarks.streaming', *argv])
    row['cpus'] = len(os.sched_getaffinity(0))
    row['load_average'] = round(os.getloadavg()[2], 1)  # over the last 15 minutes
    write(args.out, [row])
    print(json.dumps(row))


if __name__ == '__main__':
    main(sys.argv[1:])
