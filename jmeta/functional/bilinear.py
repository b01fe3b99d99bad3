"""Bilinear operations on tasks, as primitives closed under differentiation and vmap.

Each takes two operands with a leading axis of tasks T. An operand that does not
differ between tasks has T = 1 while an axis of the other holds the tasks, so
that all of them are one product.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


def bilinear_primitive(
    name: str, shape: Callable, *, cpu: Callable, accelerator: Callable | None = None, static: tuple[str, ...] = ()
) -> Primitive:
    """A primitive of two operands of one dtype, lowered to a form for the platform.

    Its derivatives are declared by `jax.interpreters.ad.defbilinear`.

    Args:
        name: as it is seen in a jaxpr.
        shape: `(a, b, **params)` to the shape of the result.
        cpu: the form on the CPU, `(a, b, **params)` to an array.
        accelerator: the form everywhere else; None for the same.
        static: names of the parameters.
    """
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(primitive.bind, static_argnames=static))
    primitive.def_abstract_eval(lambda a, b, **params: jax.core.ShapedArray(shape(a, b, **params), a.dtype))
    mlir.register_lowering(primitive, mlir.lower_fun(accelerator or cpu, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(cpu, multiple_results=False), platform="cpu")
    return primitive


def batch_tasks(primitive: Primitive, *, a_axis: int, b_axis: int, a_out: int, b_out: int) -> None:
    """Declares what vmap does: two batched operands are more tasks; one alone is folded into an axis of its own.

    Args:
        primitive: from `bilinear_primitive`.
        a_axis: into which axis of the first operand a batch is folded.
        b_axis: into which axis of the second.
        a_out: in which axis of the result a batch of the first operand is found.
        b_out: in which axis a batch of the second.
    """

    def rule(operands, dims, **params):
        (a, b), (da, db) = operands, dims
        if db is None:
            size, out = a.shape[da], a_out
            a = _fold(a, da, a_axis)
        elif da is None:
            size, out = b.shape[db], b_out
            b = _fold(b, db, b_axis)
        else:
            size, out = a.shape[da], 0
            a, b = _fold(a, da, 0), _fold(b, db, 0)
        return _unfold(primitive.bind(a, b, **params), size, out), out

    batching.primitive_batchers[primitive] = rule


def _fold(a, source, axis):
    """Moves the batch axis `source` before `axis` (counted without it) and merges the two."""
    a = jnp.moveaxis(a, source, axis)
    return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2 :])


def _unfold(a, size, axis):
    """Splits a batch axis of `size` off the front of `axis`; it stays where it is."""
    return a.reshape(*a.shape[:axis], size, -1, *a.shape[axis + 1 :])
