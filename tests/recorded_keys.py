"""Keys that report what is drawn from them and what is derived from them."""

import collections
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.extend import random as extended


class Record(NamedTuple):
    """What has been done with each key; a key is its two numbers.

    Attributes:
        drawn: how often random bits were drawn from a key.
        split: how often a key was split.
        folded: how often a number was folded into a key.
    """

    drawn: collections.Counter[Any]
    split: collections.Counter[Any]
    folded: collections.Counter[Any]

    def faults(self) -> list[str]:
        """Name every key that is drawn from twice, or that serves two purposes."""
        jax.effects_barrier()
        drawn, split = self.drawn.items(), self.split.items()
        parents = set(self.split) | set(self.folded)
        return [
            *(f'{key} is drawn from {n} times' for key, n in drawn if n > 1),
            *(f'{key} is drawn from and has children' for key, _ in drawn
              if key in parents),
            *(f'{key} is split {n} times' for key, n in split if n > 1),
            *(f'{key} is split, and numbers are folded into it' for key, _ in split
              if key in self.folded),
        ]

    def clear(self) -> None:
        """Forget everything, since what follows may have the same noise again."""
        jax.effects_barrier()
        for counter in self:
            counter.clear()


def start(monkeypatch: pytest.MonkeyPatch) -> Record:
    """Make `jax.random.key` return keys that report to a new record."""
    record = Record(*(collections.Counter() for _ in Record._fields))
    plain, key = extended.threefry_prng_impl, jax.random.key

    report_drawn, report_split, report_folded = map(_report, record)

    def split(data: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        report_split(data)
        return plain.split(data, shape)

    def random_bits(data: jax.Array, bit_width: int, shape: Any) -> jax.Array:
        report_drawn(data)
        return plain.random_bits(data, bit_width, shape)

    def fold_in(data: jax.Array, number: jax.Array) -> jax.Array:
        report_folded(data)
        return plain.fold_in(data, number)

    impl = extended.define_prng_impl(
        key_shape=plain.key_shape, seed=plain.seed, split=split,
        random_bits=random_bits, fold_in=fold_in, name='recorded',
    )
    monkeypatch.setattr(jax.random, 'key', lambda seed: key(seed, impl=impl))
    return record


def _report(counter: collections.Counter[Any]) -> Any:
    """Return a function of keys [..., 2] that counts them when the program runs."""

    def count(data: np.ndarray) -> None:
        counter.update(map(tuple, np.asarray(data).reshape(-1, 2).tolist()))

    @jax.custom_batching.custom_vmap
    def report(data: jax.Array) -> jax.Array:
        jax.debug.callback(count, data)
        return data

    @report.def_vmap
    def report_all(size: int, batched: Any, data: jax.Array) -> tuple[jax.Array, bool]:
        # One call for all of [B] keys: one for each would take minutes.
        del size
        return report(data), batched[0]

    return report
