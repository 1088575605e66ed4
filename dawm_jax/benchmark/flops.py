"""Floating-point operations of a function, counted in what JAX traces of it."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def matmul_flops(function: Callable, *arguments: Any) -> float:
    """Operations of all matrix products of `function(*arguments)`; nothing is run.

    A product of [M, K] and [K, N] counts 2 M N K. Loops count every turn, which a compiled
    program's own cost analysis does not. What is no matrix product counts nothing: in these
    networks that is less than a tenth of the work.

    Raises:
      ValueError: a loop whose number of turns is not known before it runs.
    """
    return _flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _flops(jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _dot_flops(equation)
        elif name == "conv_general_dilated":
            raise ValueError("convolutions are not counted: this package has none")
        elif name == "cond":
            total += max(map(_flops, _inner(equation)))
        else:
            inner = sum(map(_flops, _inner(equation)))
            if name == "while" and inner:
                raise ValueError("matrix products in a loop of unknown length cannot be counted")
            total += inner * (equation.params["length"] if name == "scan" else 1)
    return total


def _inner(equation) -> Iterator[Any]:
    """The programs inside an equation, of loops, branches and nested functions."""
    for leaf in jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
        leaf = getattr(leaf, "jaxpr", leaf)  # a closed one holds its own
        if hasattr(leaf, "eqns"):
            yield leaf


def _dot_flops(equation) -> float:
    left, right = (variable.aval.shape for variable in equation.invars)
    (contracted, _), (_, batch) = equation.params["dimension_numbers"]
    depth = math.prod(left[axis] for axis in contracted)
    shared = math.prod(right[axis] for axis in batch)
    return 2.0 * math.prod(left) * math.prod(right) / (depth * shared)
