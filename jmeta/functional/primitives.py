"""Linear and bilinear operations on tasks, as primitives closed under differentiation and vmap.

Each takes one or two operands with a leading task axis T. If only one of two operands
differs between tasks, T is 1 and the tasks are folded into another axis of that
operand, so that all of them are one product. On accelerators the products have the
precision that `jax_default_matmul_precision` names when a program is compiled; a
context that sets it inside what is compiled has no effect.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, primitives
from jax.interpreters import batching, mlir
from jax.sharding import PartitionSpec

from jmeta.functional.varying import vary_over, varying
from jmeta.types import Array


def task_primitive(
    name: str,
    shape: Callable,
    *,
    cpu: Callable,
    accelerator: Callable | None = None,
    terms: Callable | None = None,
    static: tuple[str, ...] = (),
) -> Primitive:
    """A primitive of one operand, or two of one dtype, lowered to a form for the platform.

    Its derivatives are declared by `jax.interpreters.ad`, `deflinear2` or `defbilinear`.

    Args:
        name: its name in a jaxpr.
        shape: `(*operands, **params)` to the shape of the result.
        cpu: the form on the CPU, `(*operands, **params)` to an array.
        accelerator: the form everywhere else; None for the same form.
        terms: for products, `(*operands, **params)` to the number of terms that each number of the result sums.
        static: the names of its parameters.
    """
    primitive = Primitive(name)
    compiled = jax.jit(primitive.bind, static_argnames=static)

    def run(*operands, **params):
        with jax.disable_jit(False):  # or it would bind, and so call, itself forever
            return compiled(*operands, **params)

    primitive.def_impl(run)
    if terms is not None:
        _TERMS[primitive] = terms

    def result(*operands, **params):
        # Made from an operand's type, which also says over which axes of a mesh it varies.
        dimensions = shape(*operands, **params)
        unsharded = operands[0].sharding.update(spec=PartitionSpec(*[None] * len(dimensions)))
        return operands[0].update(shape=dimensions, sharding=unsharded, weak_type=False)

    primitive.def_abstract_eval(result)
    mlir.register_lowering(primitive, mlir.lower_fun(accelerator or cpu, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(cpu, multiple_results=False), platform="cpu")
    return primitive


def _terms_of_product(a, b, *, dimension_numbers, **_):
    (contracted, _), _ = dimension_numbers
    return math.prod(a.shape[axis] for axis in contracted)


def _terms_of_convolution(x, w, *, dimension_numbers, **_):
    return math.prod(w.shape) // w.shape[dimension_numbers.rhs_spec[0]]


_TERMS: dict[Primitive, Callable] = {
    primitives.dot_general_p: _terms_of_product,
    primitives.conv_general_dilated_p: _terms_of_convolution,
}


def terms(primitive: Primitive, /, *operands: Array, **params: Any) -> int:
    """The number of terms that each number of a matrix product or convolution sums; 0 for other primitives.

    Args:
        primitive: any primitive of a jaxpr; those of `task_primitive` and JAX's own
            products are known. For a dilated convolution, terms with zeros count too.
        operands: its operands, or their shapes and dtypes.
        params: its parameters.

    Example:
        >>> a, b = jnp.ones((7, 2)), jnp.ones((2, 3))
        >>> [terms(e.primitive, a, b, **e.params) for e in jax.make_jaxpr(jnp.matmul)(a, b).eqns]
        [2]
    """
    return _TERMS[primitive](*operands, **params) if primitive in _TERMS else 0


def alike(a: Array, b: Array) -> tuple[Array, Array]:
    """The operands in one dtype, both varying over the axes of a mesh over which either does.

    Inside `shard_map` a matrix may be the same on all devices while its examples are not. The gradient of such a
    matrix is a sum over devices, which JAX infers from the types of the primitive's operands.
    """
    dtype = jnp.result_type(a, b)
    return vary_over((a.astype(dtype), b.astype(dtype)), varying((a, b)))


def batch_single(primitive: Primitive) -> None:
    """Declares the rule for vmap of a primitive with one operand, which then has more tasks.

    Args:
        primitive: from `task_primitive`.
    """
    batching.primitive_batchers[primitive] = functools.partial(_more_tasks, primitive)


def batch_tasks(primitive: Primitive, *, a_axis: int, b_axis: int, a_out: int, b_out: int) -> None:
    """Declares the rule for vmap: two batched operands have more tasks; of a single one, the batch joins an axis.

    Args:
        primitive: from `task_primitive`.
        a_axis: the axis of the first operand into which a batch is folded.
        b_axis: that of the second.
        a_out: the axis of the result that holds a batch of the first operand.
        b_out: the axis that holds a batch of the second.
    """

    def rule(operands, dims, **params):
        (a, b), (da, db) = operands, dims
        if da is not None and db is not None:
            return _more_tasks(primitive, operands, dims, **params)
        if db is None:
            (a, sizes), out = _fold(a, da, a_axis), a_out
        else:
            (b, sizes), out = _fold(b, db, b_axis), b_out
        return _unfold(primitive.bind(a, b, **params), sizes, out), out

    batching.primitive_batchers[primitive] = rule


def _more_tasks(primitive, operands, dims, **params):
    """The rule for vmap if every operand is batched: the batch joins the tasks."""
    folded = [_fold(operand, source, 0) for operand, source in zip(operands, dims, strict=True)]
    _, sizes = folded[0]
    return _unfold(primitive.bind(*(operand for operand, _ in folded), **params), sizes, 0), 0


def _fold(a, source, axis):
    """Moves the batch axis `source` before `axis` (counted without it) and merges the two; also returns their sizes."""
    a = jnp.moveaxis(a, source, axis)
    sizes = a.shape[axis : axis + 2]
    return a.reshape(*a.shape[:axis], math.prod(sizes), *a.shape[axis + 2 :]), sizes


def _unfold(a, sizes, axis):
    """Splits `axis` into a batch axis and the axis it had been merged with, of these sizes."""
    return a.reshape(*a.shape[:axis], *sizes, *a.shape[axis + 1 :])
