"""The matrix products and convolutions of a program, and their FLOP."""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core

__all__ = ['flops', 'products']

_PRODUCTS = 'dot_general', 'conv_general_dilated'


def products(jaxpr: core.Jaxpr, times: int = 1) -> Iterator[tuple[core.JaxprEqn, int]]:
    """Yield every matrix product and convolution of a program.

    Args:
        jaxpr: the program, with those that it calls.
        times: how often it runs.

    Yields:
        The equation, and how often it is computed: a scan multiplies by its length.
        Of the branches of a condition, all are counted; the body of a loop of unknown
        length counts once.
    """
    for equation in jaxpr.eqns:
        if equation.primitive.name in _PRODUCTS:
            yield equation, times
        inner = times
        if equation.primitive.name == 'scan':
            inner *= equation.params['length']
        for called in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr),
        ):
            if isinstance(called, core.ClosedJaxpr):
                called = called.jaxpr
            if isinstance(called, core.Jaxpr):
                yield from products(called, inner)


def flops(equation: core.JaxprEqn) -> int:
    """Return the FLOP of a product or a convolution."""
    avals: list[Any] = [v.aval for v in (*equation.invars, *equation.outvars)]
    one, other, out = (aval.shape for aval in avals)
    dimensions = equation.params['dimension_numbers']
    if equation.primitive.name == 'dot_general':
        (contracted, _), _ = dimensions
        each = math.prod(one[i] for i in contracted)
    else:
        each = math.prod(other) // out[dimensions.out_spec[1]]
    return max(2 * math.prod(out) * each, 1)
