"""Training throughput of the MLP VAE against a plain PyTorch loop, on this machine.

Both sides train the same network (784-400-20-400-784, ReLU, Bernoulli) with Adam on
the same random images, held in memory, gathered by index and binarized afresh at each
step, in batches of 128. They take turns in one process; the figures are medians over
the turns, and `ratio` is the median of the turns' ratios.

Only turns on a quiet machine count. Taking turns does not cancel the load of other
processes: one busy core slows PyTorch, whose threads wait for each other after every
operation, many times more than it slows XLA, and would flatter gm_jax.

The row `matrix_products` times the five large products of a step alone, in a compiled
loop: the time of a step if everything else were free.

Usage:
    python -m benchmarks.train_step --turns=11 --out=results/bench_train_step.json
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.machine import device_name
from experiments import vae
from gm_jax.data import image_set, pipeline
from gm_jax.training import parallel

BATCH, HIDDEN, LATENT, LEARNING_RATE = 128, 400, 20, 1e-3
IMAGE_SHAPE, NUM_IMAGES = (28, 28, 1), 60_000

Runner = Callable[[int], None]  # runs this many training steps and waits for them


def torch_device() -> torch.device:
    """Return the device in PyTorch that JAX uses too."""
    return torch.device('cpu' if jax.default_backend() == 'cpu' else 'cuda')


def prepare_torch() -> None:
    """Make PyTorch compute as XLA does: denormals are 0, TF32 where it is available."""
    # Before the threads are made, since they inherit the setting.
    torch.set_flush_denormal(True)
    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_float32_matmul_precision('high')
    torch.manual_seed(0)


def torch_wait() -> None:
    """Wait until PyTorch has finished all queued work."""
    if torch_device().type == 'cuda':
        torch.cuda.synchronize()


class TorchVAE(nn.Module):
    """The MLP VAE as PyTorch's own example writes it."""

    def __init__(self) -> None:
        super().__init__()
        num_dims = int(np.prod(IMAGE_SHAPE))
        self.encoder = nn.Linear(num_dims, HIDDEN)
        self.mean = nn.Linear(HIDDEN, LATENT)
        self.logvar = nn.Linear(HIDDEN, LATENT)
        self.decoder = nn.Linear(LATENT, HIDDEN)
        self.logits = nn.Linear(HIDDEN, num_dims)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return (logits [B, D], mean [B, Z], logvar [B, Z])."""
        hidden = F.relu(self.encoder(x))
        mean, logvar = self.mean(hidden), self.logvar(hidden)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        return self.logits(F.relu(self.decoder(z))), mean, logvar


def torch_runner(images: np.ndarray) -> Runner:
    """Make the PyTorch loop: without a DataLoader, with fused Adam, on every core.

    Args:
        images: [N, H, W, C] uint8.

    Returns:
        A Runner that goes on from where its last call ended.
    """
    prepare_torch()
    device = torch_device()
    # Scaled once, outside the loop: the quickest that PyTorch can do here.
    data = torch.from_numpy(images.reshape(len(images), -1)).to(device).float() / 255
    model = TorchVAE().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            x = torch.bernoulli(data[torch.randint(len(data), (BATCH,), device=device)])
            logits, mean, logvar = model(x)
            nll = F.binary_cross_entropy_with_logits(logits, x, reduction='sum')
            kl = 0.5 * torch.sum(mean ** 2 + logvar.exp() - logvar - 1)
            optimizer.zero_grad(set_to_none=True)
            ((nll + kl) / BATCH).backward()
            optimizer.step()
        torch_wait()

    return run


def gm_jax_runner(
    build: Callable, config: Any, images: np.ndarray, num_values: int,
    steps_per_dispatch: int,
) -> Runner:
    """Make the loop of a real run: the same step, input pipeline and dispatch.

    Args:
        build: the `build` function of the experiment.
        config: the settings of the experiment.
        images: [N, H, W, C] uint8.
        num_values: V, the number of values of a pixel.
        steps_per_dispatch: K; steps are run in multiples of K.

    Returns:
        A Runner that goes on from where its last call ended.
    """
    examples = image_set.ArrayExamples(images, np.full(len(images), -1, np.int32))
    data = image_set.ImageSet(
        name='random', image_shape=images.shape[1:], num_values=num_values,
        num_classes=0, splits={'train': examples, 'test': examples}, entropy=None,
        binarize=config.binarize,
    )
    experiment, batch = build(config, data), config.batch_size
    train_many = parallel.train_many(experiment.train_step, steps_per_dispatch)
    rng = jax.random.key(0)
    state = parallel.replicate(experiment.init(rng))
    resident = parallel.replicate({'image': images, 'label': examples.labels})
    many = max(experiment.minibatches, 1)  # minibatches per step
    shape: tuple[int, ...] = (steps_per_dispatch, batch)
    if experiment.minibatches:
        shape = (steps_per_dispatch, experiment.minibatches, batch)
    place = np.broadcast_to(np.arange(batch, dtype=np.int32), shape)

    def run(num_steps: int) -> None:
        nonlocal state
        first = int(state.step)
        for step in range(first, first + num_steps, steps_per_dispatch):
            rows = pipeline.example_order(
                0, step * many, batch, len(images), num_steps=steps_per_dispatch * many
            )
            batches = {'row': rows.astype(np.int32).reshape(shape), 'index': place}
            state, _ = train_many(
                state, resident, parallel.split(batches, axis=len(shape) - 1),
                np.int32(steps_per_dispatch), rng,
            )
        jax.block_until_ready(state)

    return run


def products_runner() -> Runner:
    """Make a loop of the step's products of 784 x 400 with a batch, and nothing else.

    There are two in the forward pass, and in the backward pass the gradients of both
    weights and of the second layer's input. The small products of the latent, which are
    left out, are 5 % of the arithmetic.
    """
    num_dims = int(np.prod(IMAGE_SHAPE))
    x = jax.random.normal(jax.random.key(0), (BATCH, num_dims))
    h = jax.random.normal(jax.random.key(1), (BATCH, HIDDEN))
    w = jax.random.normal(jax.random.key(2), (num_dims, HIDDEN))

    @jax.jit
    def loop(num_steps: jax.Array) -> jax.Array:
        def body(_: jax.Array, carry: jax.Array) -> jax.Array:
            # Each step needs the one before, so that no product is optimised away.
            a, b = x + carry, h + carry
            products = (a @ w, b @ w.T, a @ w, a.T @ b, b.T @ a)
            return 1e-9 * jnp.asarray(sum(jnp.mean(product) for product in products))

        return jax.lax.fori_loop(0, num_steps, body, jnp.float32(0))

    return lambda num_steps: jax.block_until_ready(loop(num_steps))


def busy_seconds() -> float:
    """Return the CPU seconds that all processes have used since boot."""
    ticks = [int(x) for x in pathlib.Path('/proc/stat').read_text().split()[1:9]]
    idle, waiting = ticks[3:5]
    return (sum(ticks) - idle - waiting) / os.sysconf('SC_CLK_TCK')


def timed(run: Runner, num_steps: int) -> tuple[float, float]:
    """Time `num_steps` steps, and measure the CPU that others use meanwhile.

    Args:
        run: the loop to time.
        num_steps: steps to run.

    Returns:
        (seconds, the share of all cores' time that other processes used).
    """
    busy, own, start = busy_seconds(), time.process_time(), time.perf_counter()
    run(num_steps)
    seconds = time.perf_counter() - start
    others = busy_seconds() - busy - (time.process_time() - own)
    return seconds, min(max(others / seconds / (os.cpu_count() or 1), 0.0), 1.0)


def compare(
    ours: Runner, theirs: Runner, turns: int, num_steps: int, max_load: float,
    batch: int,
) -> dict:
    """Time two loops in turns, alternating which one goes first.

    Args:
        ours: the loop to report.
        theirs: the loop to compare with.
        turns: how many quiet turns to time.
        num_steps: steps per turn.
        max_load: the share of the cores that others may use in a quiet turn.
        batch: images per step.

    Returns:
        The figures of a row: medians over the quiet turns, their least and greatest
        ratio, and how many turns were not quiet.

    Raises:
        SystemExit: more than `turns` turns were not quiet.
    """
    quiet: list[tuple[float, float]] = []
    loads: list[float] = []
    while len(quiet) < turns and len(loads) - len(quiet) <= turns:
        order = (ours, theirs) if len(loads) % 2 else (theirs, ours)
        times = {run: timed(run, num_steps) for run in order}
        loads.append(max(load for _, load in times.values()))
        if loads[-1] <= max_load:
            quiet.append((times[ours][0], times[theirs][0]))
    if len(quiet) < turns:
        raise SystemExit(
            f'Other processes used {statistics.median(loads):.0%} of the CPU: only '
            f'{len(quiet)} of {len(loads)} turns were quiet. Nothing is written; try '
            f'again on an idle machine.'
        )
    seconds, torch_seconds = map(statistics.median, zip(*quiet, strict=True))
    ratios = [b / a for a, b in quiet]
    return {
        'seconds': seconds / num_steps,
        'images_per_s': round(num_steps * batch / seconds, 1),
        'torch_images_per_s': round(num_steps * batch / torch_seconds, 1),
        'ratio': round(statistics.median(ratios), 2),
        'ratio_range': [round(min(ratios), 2), round(max(ratios), 2)],
        'turns': turns,
        'turns_not_quiet': len(loads) - len(quiet),
    }


def main(argv: list[str]) -> None:
    """Time both loops and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--turns', type=int, default=11)
    parser.add_argument('--num_steps', type=int, default=600, help='steps per turn')
    parser.add_argument('--steps_per_dispatch', type=int, default=50)
    parser.add_argument('--out', default='results/bench_train_step.json')
    parser.add_argument(
        '--max_load', type=float, default=0.05,
        help='share of the CPU that other processes may use in a turn that counts',
    )
    args = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_IMAGES, *IMAGE_SHAPE), dtype=np.uint8)
    config = vae.Config(
        binarize='dynamic', batch_size=BATCH, hidden=(HIDDEN,),
        latent_dims=(LATENT,), learning_rate=LEARNING_RATE, schedule='constant',
    )
    ours = gm_jax_runner(vae.build, config, images, 256, args.steps_per_dispatch)
    theirs = torch_runner(images)
    first, _ = timed(ours, args.steps_per_dispatch)
    products = products_runner()
    timed(products, args.steps_per_dispatch)
    timed(theirs, args.steps_per_dispatch)
    common = {
        'model': 'vae', 'device': device_name(), 'batch': BATCH,
        'image_shape': list(IMAGE_SHAPE),
        'steps_per_dispatch': args.steps_per_dispatch,
        'versions': {'jax': jax.__version__, 'torch': torch.__version__},
        'command': shlex.join(['python', '-m', 'benchmarks.train_step', *argv]),
    }
    rows = [
        {**common, 'what': 'train',
         **compare(
             ours, theirs, args.turns, args.num_steps, args.max_load, BATCH
         )},
        {**common, 'what': 'matrix_products',
         'seconds': statistics.median(
             timed(products, args.num_steps)[0] / args.num_steps
             for _ in range(args.turns)
         )},
        {**common, 'what': 'first_dispatch', 'seconds': first},
    ]
    path = pathlib.Path(args.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + '\n')
    print(json.dumps(rows, indent=2))


if __name__ == '__main__':
    main(sys.argv[1:])
