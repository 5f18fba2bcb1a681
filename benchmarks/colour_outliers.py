"""Why samples of a colour PixelCNN++ have regions of noise.

Compares what a trained model says of test images with what it says of its own samples
given the same part of each image, pixel by pixel, and follows a planted outlier:

    python -m experiments.pixel_cnn_pp --preset=fashion --dataset=cifar10_jpeg \
        --data_dir=DATA --image_size=16 --features=24 --task=completion --workdir=RUN
    python -m benchmarks.colour_outliers --workdir=RUN --data_dir=DATA \
        --out=results/colour_outliers.json

`nats_per_pixel` of samples should be that of images: a model that has learned the data
is as surprised by one as by the other. `outliers` is the share of pixels with less
probability than all but 0.1 % of those of the images, `noisy` of those that differ from
the mean of their four neighbours by more than all but 1 % of those of the images. All
are about missing pixels. `planted` compares two neighbours of a pixel with its values
and with inverted ones.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import cpu_name
from benchmarks.rows import write
from experiments import pixel_cnn_pp
from gm_jax.data import sources
from gm_jax.families import autoregressive, conditional
from gm_jax.families.setting import Setting
from gm_jax.layers.observer import Observer
from gm_jax.losses import likelihoods
from gm_jax.losses.likelihoods import LogisticMixture
from gm_jax.sampling.autoregressive import noise
from gm_jax.training import checkpoints, settings

BROAD = 16  # levels: the scale from which a component is called broad


Mixtures = Callable[[Any, jax.Array, jax.Array], LogisticMixture]
Draw = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]


class Trained(NamedTuple):
    """A trained model and test images.

    Attributes:
        s: the setting.
        variables: of the checkpoint.
        x: [N, H, W, 3] test images.
        known: [N, H, W, 3] bool.
        step: the step of the checkpoint.
        mixtures: (variables, x, what is given) -> the distribution of every pixel.
        draw: (variables, x, known, what is given) -> the rest drawn too.
    """

    s: Setting
    variables: Any
    x: jax.Array
    known: jax.Array
    step: int
    mixtures: Mixtures
    draw: Draw

    @property
    def missing(self) -> np.ndarray:
        """The pixels that are not known, [H, W] bool."""
        return ~np.asarray(self.known[0, ..., 0])


def load(
    workdir: str, data_dir: str, num: int, temperature: float, change: str
) -> Trained:
    """Read the last checkpoint of a run with a task, and the first test images."""
    path = str(pathlib.Path(workdir) / 'config.json')
    config = settings.load(path, pixel_cnn_pp.Config)
    config = dataclasses.replace(
        config, data_dir=data_dir, temperature=temperature, num_samples=num
    )
    data = sources.load(
        config.dataset, data_dir=data_dir, image_size=config.image_size
    )

    def make(config: Any, data: Any) -> Any:
        observer = Observer(config.features, config.observer_blocks)
        return conditional.observed(pixel_cnn_pp.make_model(config, data), observer)

    task = conditional.make_task(config, data)
    s = autoregressive.make_setting(config, data, make_model=make, task=task)
    shapes = jax.eval_shape(
        autoregressive.assemble(s).init, jax.random.key(config.seed)
    )
    found = checkpoints.restore(workdir, shapes)
    if found is None:
        raise SystemExit(f'{workdir} has no checkpoint')
    x = jnp.asarray(data.splits['test'].fetch(np.arange(num))['image'], jnp.int32)
    known = jnp.broadcast_to(~task.missing[..., None], x.shape)
    return Trained(
        s, found.state.eval_variables, x, known, found.step, *functions(s, change)
    )


def shifts_of_means(mixture: LogisticMixture, x: jax.Array) -> jax.Array:
    """Return the shifts of the means [..., 3, K] by the earlier colours of x."""
    red, green = (x[..., c, None] / 127.5 - 1 for c in (0, 1))
    assert mixture.coeffs is not None
    g_r, b_r, b_g = jnp.moveaxis(jnp.tanh(mixture.coeffs), -2, 0)
    return jnp.stack([0 * g_r, g_r * red, b_r * red + b_g * green], axis=-2)


def with_means_inside(mixture: LogisticMixture, x: jax.Array) -> LogisticMixture:
    """Move every mean that lies outside the levels to the nearest level."""
    shifts = shifts_of_means(mixture, x)
    inside = jnp.clip(mixture.means + shifts, -1, 1) - shifts
    return mixture._replace(means=inside)


def without_broad(mixture: LogisticMixture, x: jax.Array) -> LogisticMixture:
    """Make every broad component as narrow as is not called broad."""
    del x
    most = np.log(BROAD / 127.5)
    return mixture._replace(log_scales=jnp.minimum(mixture.log_scales, most))


def without_coefficients(mixture: LogisticMixture, x: jax.Array) -> LogisticMixture:
    """Take the earlier colours of a pixel at the middle level in the means."""
    del x
    assert mixture.coeffs is not None
    return mixture._replace(coeffs=0 * mixture.coeffs)


# Changes of the distributions in sampling alone, to see which one ends the noise.
CHANGES: dict[str, Callable[[LogisticMixture, jax.Array], LogisticMixture]] = {
    'none': lambda mixture, x: mixture,
    'means_inside': with_means_inside,
    'scales_below_16_levels': without_broad,
    'no_coefficients': without_coefficients,
}


def functions(s: Setting, change: str) -> tuple[Mixtures, Draw]:
    """Return the compiled network and sampler of a setting."""
    quantile = s.model.distribution.quantile
    changed = s.model._replace(distribution=s.model.distribution._replace(
        quantile=lambda m, x, u: quantile(CHANGES[change](m, x), x, u)
    ))
    generate, _ = autoregressive.generate_and_sweep(changed, s.config.temperature)

    def condition(given: jax.Array) -> jax.Array | None:
        return s.condition(given, jnp.zeros(len(given), jnp.int32))

    def mixtures(variables: Any, x: jax.Array, given: jax.Array) -> LogisticMixture:
        return s.model.apply(
            variables, x, condition(given), rngs=None, step=None, chunk=0
        )

    def draw(
        variables: Any, x: jax.Array, known: jax.Array, given: jax.Array
    ) -> jax.Array:
        uniform = noise(jax.random.key(0), s.data.image_shape, 4, batch=len(x))
        return generate(variables, x, known, uniform, condition(given))

    return jax.jit(mixtures), jax.jit(draw)


def mixtures(t: Trained, x: jax.Array) -> LogisticMixture:
    """Return the distribution of every pixel of x, given the known part of t.x."""
    return t.mixtures(t.variables, x, t.x)


def samples(t: Trained, x: jax.Array, known: jax.Array) -> jax.Array:
    """Draw the values of x that are not known, given the known part of t.x."""
    return t.draw(t.variables, x, known, t.x)


@jax.jit
def nats(mixture: LogisticMixture, x: jax.Array) -> jax.Array:
    """Return -log p of every pixel, [N, H, W]."""
    shape = x.shape[:3]
    flat = jax.tree.map(lambda a: a.reshape(-1, 1, 1, *a.shape[3:]), (mixture, x))
    return -likelihoods.logistic_mixture_log_prob(*flat).reshape(shape)


@jax.jit
def mass(mixture: LogisticMixture, x: jax.Array) -> dict[str, jax.Array]:
    """Return where the mass of each pixel is, [N, H, W] each.

    Returns:
        The shares of the mass of components whose scale is broad, and whose mean lies
        outside the levels, in any colour, and the expected scale in levels.
    """
    weights = jax.nn.softmax(mixture.logits)
    levels = 127.5 * jnp.exp(jnp.maximum(mixture.log_scales, -7.0))
    means = mixture.means + shifts_of_means(mixture, x)
    outside = (jnp.abs(means) > 1).any(axis=-2)
    return {
        'broad': (weights * (levels > BROAD).any(axis=-2)).sum(-1),
        'mean_outside': (weights * outside).sum(-1),
        'scale_levels': (weights * levels.mean(axis=-2)).sum(-1),
    }


def roughness(x: jax.Array) -> np.ndarray:
    """Return [N, H, W] |x - mean of the four neighbours|, averaged over colours."""
    y = np.asarray(x, np.float64)
    padded = np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
    around = (
        padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1]
        + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    ) / 4
    return np.abs(y - around).mean(axis=-1)


def describe_images(t: Trained, x: jax.Array, limits: dict[str, float]) -> dict:
    """Return what the model says of images, over their missing pixels."""
    where = t.missing
    mixture = mixtures(t, x)
    surprise, rough = np.asarray(nats(mixture, x))[:, where], roughness(x)[:, where]
    limits.setdefault('surprise', float(np.quantile(surprise, 0.999)))
    limits.setdefault('rough', float(np.quantile(rough, 0.99)))
    rows = np.asarray(nats(mixture, x)).mean(axis=(0, 2))[where.any(axis=1)]
    return {
        'nats_per_pixel': float(surprise.mean()),
        'nats_per_pixel_by_row': rows.round(3).tolist(),
        'outliers': float((surprise > limits['surprise']).mean()),
        'noisy': float((rough > limits['rough']).mean()),
        'images_with_5_noisy_pixels': float(
            ((rough > limits['rough']).sum(axis=1) >= 5).mean()
        ),
        **{
            name: float(np.asarray(value)[:, where].mean())
            for name, value in mass(mixture, x).items()
        },
    }


def planted(t: Trained) -> dict:
    """Invert one pixel of the second missing row, and follow what it does."""
    where = t.missing
    row, column = int(np.argmax(where.any(axis=1))) + 1, where.shape[1] // 2
    changed = t.x.at[:, row, column].set((t.x[:, row, column] + 128) % 256)
    before = np.arange(where.size).reshape(where.shape) <= row * where.shape[1] + column
    known = jnp.broadcast_to(before[..., None], t.x.shape)
    found: dict[str, Any] = {'row': row, 'column': column}
    for name, x in (('without', t.x), ('with', changed)):
        mixture = mixtures(t, x)
        parts = {**mass(mixture, x), 'nats': nats(mixture, x)}
        drawn = samples(t, x, known)
        rough = roughness(drawn)
        found[name] = {
            place: {
                key: float(np.asarray(value)[:, r, c].mean())
                for key, value in parts.items()
            }
            for place, r, c in (
                ('right', row, column + 1), ('below', row + 1, column),
                ('far', row + 1, 1),
            )
        } | {
            'roughness_of_samples_by_row_below': [
                float(rough[:, r, column - 2:column + 3].mean().round(3))
                for r in range(row + 1, len(where))
            ],
        }
    return found


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--workdir', required=True, nargs='+')
    parser.add_argument('--data_dir', default='')
    parser.add_argument('--images', type=int, default=256)
    parser.add_argument('--out', default='results/colour_outliers.json')
    args = parser.parse_args()
    rows = []
    for workdir in args.workdir:
        row: dict[str, Any] = {}
        limits: dict[str, float] = {}
        for change, temperature in (*((name, 1.0) for name in CHANGES), ('none', 0.8)):
            t = load(workdir, args.data_dir, args.images, temperature, change)
            if not row:
                row = {
                    'workdir': workdir, 'step': t.step,
                    'images': describe_images(t, t.x, limits),
                    'planted': planted(t), 'limits': limits, 'samples': {},
                }
            drawn = samples(t, t.x, t.known)
            name = f'change: {change}, temperature: {temperature}'
            row['samples'][name] = describe_images(t, drawn, limits)
        rows.append(row)
        print(json.dumps(row, indent=1))
    out = {
        'command': ' '.join(['python -m benchmarks.colour_outliers', *sys.argv[1:]]),
        'machine': cpu_name(), 'num_images': args.images, 'broad_levels': BROAD,
        'rows': rows,
    }
    write(args.out, out)


if __name__ == '__main__':
    main()
