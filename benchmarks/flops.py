"""Floating-point operations of the matrix products and convolutions that a function makes."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.interpreters.partial_eval import dce_jaxpr


def count(function: Callable, *arguments: Any, iterations: int = 1) -> int:
    """Counts multiplications and additions; those on which no result depends are left out.

    Normalisations, activations and pooling are not counted. A scan counts as
    often as it runs, a conditional as its dearest branch.

    Args:
        function: any traceable function.
        arguments: what it is called with, or their shapes.
        iterations: how often a while loop runs, which a trace does not tell.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _of_jaxpr(jaxpr, iterations)


def _of_jaxpr(jaxpr, iterations) -> int:
    return sum(_of_equation(equation, iterations) for equation in jaxpr.eqns)


def _of_equation(equation, iterations) -> int:
    name, shapes = equation.primitive.name, [variable.aval.shape for variable in equation.invars]
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * equation.outvars[0].aval.size * math.prod(shapes[0][axis] for axis in contracted)
    if name in ("linear", "linear_dx"):  # examples [T, K, D] and a matrix with D rows or columns
        return 2 * equation.outvars[0].aval.size * shapes[0][2]
    if name == "linear_dw":  # [T, K, D] and [T, K, E]: K products for each output
        return 2 * equation.outvars[0].aval.size * shapes[0][1]
    if name == "conv":  # x [T, B, H, W, C] and w [T, h, w, C, O]: h w C products for each output
        return 2 * equation.outvars[0].aval.size * math.prod(shapes[1][1:4])
    if name == "conv_dw":  # x [T, B, H, W, C] and dy [T, B, H, W, O]: h w C products for each pixel of dy
        return 2 * math.prod(shapes[1]) * math.prod(equation.outvars[0].aval.shape[1:4])
    inner = [_of_jaxpr(jaxpr, iterations) for jaxpr in _bodies(equation)]
    if name == "cond":
        return max(inner)
    return sum(inner) * {"scan": equation.params.get("length", 1), "while": iterations}.get(name, 1)


def _bodies(equation):
    """The functions that an equation calls, as jaxprs."""
    if equation.primitive.name == "custom_linear_solve":  # beside the solver it holds its rules of differentiation
        yield equation.params["jaxprs"].solve.jaxpr
        return
    for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
        if hasattr(value, "eqns"):
            yield getattr(value, "jaxpr", value)
