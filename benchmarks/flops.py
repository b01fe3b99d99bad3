"""Floating-point operations of the matrix products and convolutions that a function makes."""

from collections.abc import Callable
from typing import Any

import jax
from jax.interpreters.partial_eval import dce_jaxpr

from jmeta.functional.primitives import terms


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
    operands = (variable.aval for variable in equation.invars)
    if number := terms(equation.primitive, *operands, **equation.params):
        return 2 * equation.outvars[0].aval.size * number
    inner = [_of_jaxpr(jaxpr, iterations) for jaxpr in _bodies(equation)]
    if equation.primitive.name == "cond":
        return max(inner)
    repeats = {"scan": equation.params.get("length", 1), "while": iterations}
    return sum(inner) * repeats.get(equation.primitive.name, 1)


def _bodies(equation):
    """The functions that an equation calls, as jaxprs."""
    if equation.primitive.name == "custom_linear_solve":  # beside the solver it holds its rules of differentiation
        yield equation.params["jaxprs"].solve.jaxpr
        return
    for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
        if hasattr(value, "eqns"):
            yield getattr(value, "jaxpr", value)
