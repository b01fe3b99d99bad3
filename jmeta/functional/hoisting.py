"""What a function closes over: made into arguments, or used to compute ahead."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun, Literal

from jmeta.types import PyTree


def hoist(function: Callable, *examples: PyTree) -> tuple[Callable, list]:
    """A function of explicit arguments only, and the values it closes over.

    `jax.closure_convert` leaves integers and keys inside; if they are batched, a custom
    rule that runs after `vmap` has finished would meet leaked tracers.

    Args:
        function: any traceable function.
        examples: arguments to trace it with.

    Returns:
        `explicit(free, *arguments)`, equal to `function(*arguments)`, and `free`.

    Example:
        >>> scale = jnp.float32(3)
        >>> explicit, free = hoist(lambda x: scale * x, 1.0)
        >>> print(explicit(free, 2.0))
        6.0
    """
    closed, structure = _traced(function, examples)
    free = [jnp.asarray(value) for value in closed.consts]  # NumPy doubles may become single precision
    # Without the values: a rule may be kept for longer than the trace that they belong to.
    emptied = closed.replace(consts=[None] * len(free))

    def explicit(free, *arguments):
        return _evaluated(emptied.replace(consts=free), structure, arguments)

    return explicit, free


def compute_invariants(function: Callable, *examples: PyTree) -> Callable:
    """The function, with everything that does not depend on its arguments computed here, once for all calls.

    Arrays that depend on nothing at all, such as zeros, stay inside: they are cheaper to make than
    to keep. So do operations with an effect, such as printing. A call of a jitted or checkpointed
    function, or a scan, is one operation, and stays inside if any of it depends on the arguments.

    Args:
        function: any traceable function.
        examples: arguments to trace it with; calls must have the same shapes and dtypes.

    Returns:
        A function equal to `function`, also in its derivatives with respect to what it closes over.

    Example:
        >>> features = jnp.arange(3.0)
        >>> loss = compute_invariants(lambda w: w * jnp.exp(features).sum(), 1.0)  # computes the exponentials
        >>> print(loss(2.0))  # only multiplies
        22.21
    """
    closed, structure = _traced(function, examples)
    jaxpr = closed.jaxpr
    varying, known, before, inside = set(jaxpr.invars), set(jaxpr.constvars), [], []
    for equation in jaxpr.eqns:
        operands = _variables(equation.invars)
        if equation.effects or operands & varying:
            varying.update(equation.outvars)
            inside.append(equation)
        elif operands & known:
            known.update(equation.outvars)
            before.append(equation)
        else:  # depends on nothing: made wherever it is needed
            before.append(equation)
            inside.append(equation)
    used = known & _variables([*jaxpr.outvars, *(operand for equation in inside for operand in equation.invars)])
    made = [variable for equation in before for variable in equation.outvars if variable in used]
    values = jaxpr_as_fun(ClosedJaxpr(jaxpr.replace(invars=[], outvars=made, eqns=before), closed.consts))()
    rest = ClosedJaxpr(jaxpr.replace(constvars=[*jaxpr.constvars, *made], eqns=inside), [*closed.consts, *values])
    return lambda *arguments: _evaluated(rest, structure, arguments)


def _traced(function, examples):
    """The function's jaxpr, and the structure of what it returns."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*examples)
    return closed, jax.tree.structure(shape)


def _evaluated(closed, structure, arguments):
    return jax.tree.unflatten(structure, jaxpr_as_fun(closed)(*jax.tree.leaves(arguments)))


def _variables(operands):
    return {operand for operand in operands if not isinstance(operand, Literal)}
