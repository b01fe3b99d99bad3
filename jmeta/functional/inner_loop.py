"""The inner loop: descent on a support set, and the ways to differentiate through it."""

import functools
import math
from collections.abc import Callable
from typing import Any, get_args, Literal, TypedDict, Unpack

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jmeta.checks import check_counts
from jmeta.functional.implicit import implicit_minimum, proximal_objective
from jmeta.functional.inner_rule import as_rule, check_at_zero, InnerOptimizer
from jmeta.functional.mixed import mixed_gradient, products_saveable
from jmeta.functional.varying import vary_over, varying
from jmeta.trees import by_path
from jmeta.types import Array, is_inexact, PyTree

MetaGradient = Literal["second_order", "first_order", "implicit", "truncated"]
Differentiation = Literal["mixed", "reverse"]


class MetaGradientOptions(TypedDict, total=False):
    """How the meta-gradient is taken: keywords of `inner_loop`, and of the learners on it.

    `last_steps`, `cg_steps` and `damping` are refused where they would do nothing.

    Attributes:
        meta_gradient: `"second_order"` (default), exact, through the whole loop;
            `"first_order"`, with inner gradients as constants; `"truncated"`, with
            those before the last `last_steps` as constants; `"implicit"`, at the
            minimum of the inner objective, which needs `proximal` above 0 and cannot be
            differentiated in forward mode.
        differentiation: how exact steps are differentiated. `"mixed"` (default): the
            backward pass of an inner gradient is one forward-over-reverse
            Hessian-vector product (Kemaev et al., 2025). Then the loss is to be
            differentiated in reverse mode first, by `jax.grad`; forward mode may follow.
            `"reverse"`: it is reverse over reverse, and any mode may come first.
        checkpoint: trade time for memory (default False). Of n exact steps about every
            sqrt(n)-th is stored and those between are recomputed, and mixed mode stores
            no intermediate results of an inner gradient.
        last_steps: number of exact steps under `"truncated"` (default 1).
        proximal: weight of lambda / 2 |params - start|^2 in the inner objective
            (Rajeswaran et al., 2019; default 0).
        cg_steps: maximum number of conjugate gradient steps under `"implicit"` (default
            5).
        damping: added to lambda in the meta-gradient under `"implicit"`, which becomes
            (lambda + damping) (H + lambda + damping)^-1 v, but not in the inner
            objective. 0 (default) is exact; more keeps the system from being singular
            where a network's loss is not convex.
    """

    meta_gradient: MetaGradient
    differentiation: Differentiation
    checkpoint: bool
    last_steps: int
    proximal: Array | float
    cg_steps: int
    damping: float


DEFAULTS = MetaGradientOptions(
    meta_gradient="second_order",
    differentiation="mixed",
    checkpoint=False,
    last_steps=1,
    proximal=0.0,
    cg_steps=5,
    damping=0.0,
)
# Options that only act under one `meta_gradient`, and are refused under others. `differentiation` and `checkpoint`
# never are: they say how exact steps are computed, even if there are none.
MODE_OF = {"last_steps": "truncated", "cg_steps": "implicit", "damping": "implicit"}


def inner_loop(
    objective: Callable,
    params: PyTree,
    *,
    rule: InnerOptimizer,
    steps: int,
    rule_params: PyTree = (),
    data: PyTree = None,
    unroll: int = 1,
    **options: Unpack[MetaGradientOptions],
) -> PyTree:
    """Takes `steps` steps on `objective` from `params`.

    Exact meta-gradients reach everything that `objective` depends on, whether an
    argument or a value it closes over: initial parameters, the rule's parameters, data.

    Args:
        objective: `(params, data of the step) -> scalar`, the support loss.
        params: where to start.
        rule: how a gradient becomes an update; an optax transformation is a rule with
            nothing to learn. Its memory starts afresh.
        steps: number of steps, 0 or more.
        rule_params: the rule's meta-learned parameters, from `rule.init`.
        data: what each step sees, a tree with a leading axis [steps] (indices of
            minibatches, keys); None if there is nothing.
        unroll: number of steps in one iteration of the compiled loop, as in `lax.scan`;
            for a small network more can be faster, but takes longer to compile. With
            `checkpoint`, whose loops are in segments, it must be 1.
        options: how the meta-gradient is taken, see `MetaGradientOptions`.

    Returns:
        The fast weights, with the structure of `params`.

    Raises:
        ValueError: for what `checked_options` refuses; for a number out of range; for
            data whose leading axis is not [steps]; for `rule_params` without the
            structure of `rule.init(params)`; for parameters without a gradient, such as
            integers; for a rule that has no derivative at a gradient of zero (Adam with
            `eps_root=0`) where one is taken; and under `"implicit"` for a rule with
            parameters of its own, on which the minimum does not depend.

    Example:
        >>> halve = inner_loop(lambda w, _: w**2 / 2, 8.0, rule=optax.sgd(0.5), steps=2)
        >>> print(halve)
        2.0
    """
    check_counts(steps=steps)
    check_counts(least=1, unroll=unroll)
    chosen = checked_options(**options)
    if unroll > 1 and chosen["checkpoint"]:
        raise ValueError(f"unroll is {unroll}; with checkpoint=True it must be 1.")
    _check_arrays(params, data, steps)
    if steps == 0:
        return params
    rule = as_rule(rule, "rule")
    _check_rule_params(rule, rule_params, params)
    scan = functools.partial(scan_steps, unroll=unroll)
    axes = axes_of(objective, params, data)
    params = vary_over(params, axes)
    if chosen["meta_gradient"] != "implicit":
        start = start_descent(rule, rule_params, params, axes)
        return _differentiated_step_by_step(objective, start, rule, rule_params, data, steps, scan, chosen)
    if jax.tree.leaves(rule_params):
        raise ValueError(
            'rule has parameters of its own, but meta_gradient is "implicit", under which they have no gradient; '
            "use a rule without any, such as optax.sgd(0.1)."
        )
    return _differentiated_at_the_minimum(objective, params, axes, rule, data, steps, scan, chosen)


def _differentiated_step_by_step(objective, start, rule, rule_params, data, steps, scan, chosen):
    params, _ = start
    proximal = chosen["proximal"]
    if isinstance(proximal, jax.core.Tracer) or proximal:
        objective = proximal_objective(objective, params, proximal)
    modes = {"second_order": steps, "first_order": 0, "truncated": min(chosen["last_steps"], steps)}
    exact = modes[chosen["meta_gradient"]]
    early = jax.tree.map(lambda leaf: leaf[: steps - exact], data)
    late = jax.tree.map(lambda leaf: leaf[steps - exact :], data)
    carry = scan(descent_step(constant_gradient(objective), rule, rule_params), start, early, steps - exact)
    if exact:
        check_at_zero(rule, params)
        how = {name: chosen[name] for name in ("differentiation", "checkpoint")}
        step = descent_step(exact_gradient(objective, **how), rule, rule_params)
        carry = (_scan_in_segments if chosen["checkpoint"] else scan)(step, carry, late, exact)
    return carry[0]


def _differentiated_at_the_minimum(objective, params, axes, rule, data, steps, scan, chosen):
    def minimise(objective, start, data):
        step = descent_step(constant_gradient(proximal_objective(objective, start, chosen["proximal"])), rule)
        return scan(step, start_descent(rule, (), start, axes), data, steps)[0]

    solver = {name: chosen[name] for name in ("proximal", "cg_steps", "damping")}
    return implicit_minimum(objective, params, minimise=minimise, data=data, **solver)


def descent_step(gradient: Callable, rule: InnerOptimizer, rule_params: PyTree = ()) -> Callable:
    """One inner step, `((params, memory), data) -> (params, memory)`.

    Args:
        gradient: `(params, data) -> gradient`; `jax.grad`, `mixed_gradient` or
            `constant_gradient` of an objective.
        rule: how the gradient becomes an update.
        rule_params: its meta-learned parameters.

    Returns:
        The step.

    Example:
        >>> step = descent_step(jax.grad(lambda w, _: w**2 / 2), optax.sgd(0.5))
        >>> params, _ = step((8.0, optax.sgd(0.5).init(8.0)), None)
        >>> print(params)
        4.0
    """
    rule = as_rule(rule)

    def step(carry, data):
        # The barriers keep XLA from computing a gradient again for each use of it, and an unrolled step again in those
        # after it. The carry has two, or jax 0.10 would differentiate the memory of a first-order step too.
        params, memory = map(lax.optimization_barrier, carry)
        slope = lax.optimization_barrier(gradient(params, data))
        updates, memory = rule.update(slope, memory, params, rule_params)
        return optax.apply_updates(params, updates), memory

    return step


def start_descent(rule: InnerOptimizer, rule_params: PyTree, params: PyTree, axes: frozenset[str]) -> PyTree:
    """The carry of `descent_step` before the first step: parameters and the rule's memory, varying over these axes."""
    return vary_over((params, as_rule(rule).start(rule_params, params)), axes)


def axes_of(objective: Callable, params: PyTree, data: PyTree) -> frozenset[str]:
    """The axes of a mesh over which an objective varies; JAX would otherwise sum its gradient over them."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return frozenset()
    (value,) = jax.make_jaxpr(objective)(params, first_step(data)).out_avals
    return value.manual_axis_type.varying | varying(params)


def first_step(data: PyTree) -> PyTree:
    """What the first inner step sees."""
    return jax.tree.map(lambda leaf: leaf[0], data)


def scan_steps(step: Callable, carry: PyTree, data: PyTree, steps: int, *, unroll: int = 1) -> PyTree:
    """The carry after `steps` inner steps; `step` is from `descent_step`, and `data` has a leading axis [steps]."""
    if steps == 0:
        return carry
    return lax.scan(lambda carry, data: (step(carry, data), None), carry, data, length=steps, unroll=unroll)[0]


def constant_gradient(objective: Callable) -> Callable:
    """`jax.grad(objective)` that counts as a constant when it is differentiated.

    Args:
        objective: `(params, data) -> scalar`.

    Returns:
        `(params, data) -> gradient`.

    Example:
        >>> print(jax.grad(lambda w: constant_gradient(lambda w, _: w**3)(w, None))(2.0))
        0.0
    """
    return lambda params, data: lax.stop_gradient(jax.grad(objective)(params, data))


def exact_gradient(objective: Callable, *, differentiation: Differentiation, checkpoint: bool) -> Callable:
    """`jax.grad(objective)` as exact steps take it; the arguments are those of `MetaGradientOptions`."""
    if differentiation == "reverse":
        return jax.grad(objective)
    stored = jax.checkpoint_policies.nothing_saveable if checkpoint else products_saveable
    return mixed_gradient(objective, policy=stored)


def checked_options(**options: Unpack[MetaGradientOptions]) -> dict[str, Any]:
    """The options, with defaults filled in, once they are known to be consistent.

    Raises:
        ValueError: for an unknown mode, a negative number, an option of another mode,
            an implicit meta-gradient without a proximal term, or one with a traced
            `proximal` or `damping`.
        TypeError: for an unknown option.
    """
    if unknown := options.keys() - DEFAULTS.keys():
        raise TypeError(f"{min(unknown)} is not an option of an inner loop; there are {', '.join(DEFAULTS)}.")
    chosen: dict[str, Any] = {**DEFAULTS, **options}
    modes = {
        "meta_gradient": get_args(MetaGradient),
        "differentiation": get_args(Differentiation),
        "checkpoint": (False, True),
    }
    for name, known in modes.items():
        if chosen[name] not in known:
            raise ValueError(f"{name} is {chosen[name]!r}; it must be one of {known}.")
    check_counts(last_steps=chosen["last_steps"], cg_steps=chosen["cg_steps"])
    meta_gradient, proximal = chosen["meta_gradient"], chosen["proximal"]
    for name in ("proximal", "damping"):
        is_traced = isinstance(chosen[name], jax.core.Tracer)
        if is_traced and meta_gradient == "implicit":
            raise ValueError(
                f"{name} is traced; an implicit meta-gradient needs a number, and has no derivative with respect to it."
            )
        if not is_traced and (chosen[name] is None or isinstance(chosen[name], str) or not chosen[name] >= 0):
            raise ValueError(f"{name} is {chosen[name]!r}; it must be 0 or more.")
    if meta_gradient == "implicit" and not proximal > 0:
        raise ValueError(f'proximal is {proximal}; meta_gradient="implicit" needs it above 0.')
    for name, mode in MODE_OF.items():
        if name in options and meta_gradient != mode:
            raise ValueError(
                f"{name} is {chosen[name]}, but meta_gradient is {meta_gradient!r}, where it has no effect; it is for "
                f"{mode!r}."
            )
    return chosen


def _check_arrays(params, data, steps):
    """Raises a `ValueError` unless data has `steps` steps and all parameters have a gradient."""
    for leaf in jax.tree.leaves(data):
        if jnp.shape(leaf)[:1] != (steps,):
            raise ValueError(
                f"data has an array of shape {jnp.shape(leaf)}; its first axis must be the steps, {steps}."
            )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not is_inexact(leaf):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} is of {jnp.result_type(leaf)}, which has no gradient; keep it out "
                "of what the inner loop moves, in the model's state or by `part`."
            )


def _check_rule_params(rule, rule_params, params):
    """Raises a `ValueError` unless the meta-learned parameters have the structure that the rule gives them."""
    given, expected = (set(by_path(tree)) for tree in (rule_params, jax.eval_shape(rule.init, params)))
    if given != expected:
        raise ValueError(
            f"rule_params has arrays at {sorted(given) or 'no path'}, but rule.init(params) has them at "
            f"{sorted(expected) or 'no path'}; pass those of rule.init(params), or what was learned from them."
        )


def _scan_in_segments(step, carry, data, steps):
    """A scan that stores about every sqrt(steps)-th step and recomputes those between in the backward pass."""
    length = math.isqrt(steps)
    whole = steps - steps % length
    segment = jax.checkpoint(lambda carry, data: scan_steps(step, carry, data, length), prevent_cse=False)
    segments = jax.tree.map(lambda leaf: leaf[:whole].reshape(whole // length, length, *leaf.shape[1:]), data)
    carry = scan_steps(segment, carry, segments, whole // length)
    return scan_steps(step, carry, jax.tree.map(lambda leaf: leaf[whole:], data), steps - whole)
