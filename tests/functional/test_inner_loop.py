"""The inner loop against closed forms, and its modes against one another, in float64."""

import functools
import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta.functional import descent_step, inner_loop, InnerRule
from jmeta.functional.inner_loop import start_descent

STEPS = 5
RNG = np.random.default_rng(0)
INPUTS, TARGETS = RNG.normal(size=(6, 4)), RNG.normal(size=(6, 2))
START = {"hidden": RNG.normal(size=(4, 5)), "output": RNG.normal(size=(5, 2))}


def close(one, other, atol=1e-10):
    chex.assert_trees_all_close(one, other, atol=atol, rtol=min(atol, 1e-10))


def meta_loss(start, inputs, rates, key, **options):
    """A loss of all that one may meta-learn: the start, the inputs, the rule's rates.

    The steps see keys of their own, and the objective closes over a key and over the inputs.
    """
    mask = jax.random.bernoulli(key, 0.8, (1, 5))

    def objective(params, step_key):
        hidden = jax.nn.relu(inputs @ params["hidden"]) * mask * jax.random.bernoulli(step_key, 0.8, (1, 5))
        return jnp.square(hidden @ params["output"] - TARGETS).mean()

    adam = optax.scale_by_adam(eps_root=1e-8)
    rule = InnerRule(
        init=lambda params: rates,
        start=lambda rates, params: adam.init(params),
        update=lambda gradients, memory, params, rates: _scaled(*adam.update(gradients, memory), rates),
    )
    data = jax.random.split(key, STEPS)
    fast = inner_loop(objective, start, rule=rule, rule_params=rates, steps=STEPS, data=data, **options)
    return jnp.square(jnp.tanh(inputs @ fast["hidden"]) @ fast["output"] - 1).mean()


def _scaled(updates, memory, rates):
    return jax.tree.map(lambda rate, update: -rate * update, rates, updates), memory


RATES = {"hidden": 0.1, "output": 0.05}
MODES = [
    {"differentiation": differentiation, "checkpoint": checkpoint}
    for differentiation, checkpoint in itertools.product(("reverse", "mixed"), (False, True))
]
MODES += [{"unroll": STEPS}, {"unroll": 2, "differentiation": "reverse"}]


@pytest.fixture(scope="module")
def reference():
    """The meta-gradients of three tasks, one after another, reverse over reverse."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(1), 3)
        gradient = jax.jit(jax.grad(partial(meta_loss, differentiation="reverse"), argnums=(0, 1, 2)))
        parts = [gradient(START, INPUTS + i, RATES, key) for i, key in enumerate(keys)]
        return keys, jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)


@pytest.mark.usefixtures("every_product_stored")
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_every_mode_gives_the_same_meta_gradient_of_everything_under_vmap(x64, reference, mode):
    keys, expected = reference
    inputs = jnp.stack([INPUTS + i for i in range(3)])
    gradient = jax.vmap(jax.grad(partial(meta_loss, **mode), argnums=(0, 1, 2)), (None, 0, None, 0))
    close(jax.jit(gradient)(START, inputs, RATES, keys), expected)


@pytest.mark.usefixtures("every_product_stored")
def test_the_gradient_of_a_vmapped_mean_is_the_mean_gradient(x64, reference):
    keys, (_, _, expected) = reference
    inputs = jnp.stack([INPUTS + i for i in range(3)])

    def mean(rates):
        return jax.vmap(meta_loss, (None, 0, None, 0))(START, inputs, rates, keys).mean()

    close(jax.jit(jax.grad(mean))(RATES), jax.tree.map(lambda leaf: leaf.mean(0), expected))


@pytest.mark.usefixtures("every_product_stored")
@pytest.mark.parametrize("outer", [jax.grad, pytest.param(jax.jacfwd, marks=pytest.mark.long)])
def test_a_meta_gradient_can_be_differentiated_once_more(x64, outer):
    def slope(rate, **mode):
        """Of the meta-gradient, along itself."""
        gradient = jax.grad(partial(meta_loss, **mode))(
            START, INPUTS, {"hidden": rate, "output": 0.05}, jax.random.key(1)
        )
        return optax.tree.norm(gradient, squared=True)

    mixed, reverse = (jax.jit(outer(partial(slope, differentiation=mode)))(0.1) for mode in ("mixed", "reverse"))
    close(mixed, reverse, atol=1e-8)


def linear_regression():
    """L(w) = |Xw - y|^2 / 2K, its X, y and a start."""
    rng = np.random.default_rng(1)
    x, y, w = rng.normal(size=(7, 3)), rng.normal(size=7), rng.normal(size=3)
    return (lambda w, _: jnp.square(x @ w - y).sum() / 14), x, y, w


@pytest.mark.parametrize("mode", [{}, {"meta_gradient": "first_order"}, {"meta_gradient": "implicit", "proximal": 1.0}])
def test_a_loop_unrolled_in_full_is_none_and_ends_at_the_same_parameters(x64, mode):
    objective, _, _, w = linear_regression()
    loop, unrolled = (
        jax.jit(partial(inner_loop, objective, rule=optax.sgd(0.1), steps=STEPS, unroll=unroll, **mode)).lower(w)
        for unroll in (1, STEPS)
    )
    assert "stablehlo.while" in loop.as_text()
    assert "stablehlo.while" not in unrolled.as_text()
    close(unrolled.compile()(w), loop.compile()(w), atol=1e-14)


@pytest.mark.parametrize(("last", "exact"), [(0, 0), (2, 2), (3, 3), (9, 3)])
def test_a_truncated_loop_of_three_steps_differentiates_the_last_ones(x64, last, exact):
    """Each exact step of data s contributes the factor I - a s X'X / K, each constant one the identity."""
    objective, x, y, w = linear_regression()
    scales = np.array([1.0, 2.0, 3.0])
    options = {"rule": optax.sgd(0.1), "steps": 3, "meta_gradient": "truncated", "last_steps": last}
    adapted = partial(inner_loop, lambda w, scale: scale * objective(w, scale), data=scales, **options)
    factors = [np.eye(3) - 0.1 * scale * x.T @ x / 7 for scale in scales[3 - exact :]]
    expected = functools.reduce(lambda before, factor: factor @ before, factors, np.eye(3))
    np.testing.assert_allclose(jax.jacobian(adapted)(w), expected, rtol=1e-10, atol=1e-13)
    end = w
    for scale in scales:
        end = end - 0.1 * scale * x.T @ (x @ end - y) / 7
    np.testing.assert_allclose(adapted(w), end, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("meta_gradient", ["second_order", "first_order", "truncated", "implicit"])
def test_no_steps_change_nothing(meta_gradient):
    keys = jax.random.split(jax.random.key(0), 0)
    options = {"rule": optax.sgd(0.1), "proximal": 1.0, "meta_gradient": meta_gradient}
    assert inner_loop(lambda w, _: w**2, 3.0, steps=0, data=keys, **options) == 3.0


@pytest.mark.parametrize("meta_gradient", ["second_order", "implicit"])
def test_no_value_of_a_trace_outlives_it(meta_gradient):
    """A rule of differentiation does, if JAX keeps what was traced with it."""

    def loss(w, x):
        options = {"rule": optax.sgd(0.1), "proximal": 1.0, "meta_gradient": meta_gradient}
        return inner_loop(lambda w, _: jnp.sin(x * w).sum(), w, steps=2, **options)

    with jax.checking_leaks():
        jax.make_jaxpr(jax.grad(loss))(1.0, jnp.ones(3))


def test_a_bound_on_the_length_of_inner_gradients_is_a_rule():
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    gradient = jax.grad(lambda w: inner_loop(lambda w, _: (w**2).sum(), w, rule=rule, steps=2).sum())(jnp.ones(3))
    assert np.isfinite(gradient).all()


def test_forward_mode_of_a_first_order_loop_does_not_reach_the_memory_of_its_rule(x64):
    """At a gradient of zero the derivative of Adam's square root is infinite."""
    adapted = partial(
        inner_loop, lambda w, _: 0.0 * w.sum(), rule=optax.adam(0.1), steps=3, meta_gradient="first_order"
    )
    w = jnp.ones(3)
    np.testing.assert_array_equal(jax.jvp(adapted, (w,), (w,))[1], w)


def test_a_step_has_a_barrier_after_its_gradient_and_two_before_it():
    """For parameters and memory apart. What they save is time, as was measured (docs/decisions/0009-linear.md)."""

    def objective(w, _):
        return jnp.square(jnp.ones((3, 4)) @ w).sum()

    step = jax.make_jaxpr(descent_step(jax.grad(objective), optax.adam(0.1)))
    carry = start_descent(optax.adam(0.1), (), jnp.ones((4, 2)), frozenset())
    assert str(step(carry, None)).count("optimization_barrier") == 3


def compiled_bytes(steps, rule=optax.sgd(0.1), **options):
    """Temporary memory of a meta-gradient of a hundred examples and a thousand parameters."""

    def loss(w):
        def objective(w, _):
            return jnp.square(jnp.tanh(jnp.tanh(jnp.ones((1000, 10)) @ w) @ w.T)).mean()

        return jnp.sum(inner_loop(objective, w, rule=rule, steps=steps, **options))

    compiled = jax.jit(jax.grad(loss)).lower(jnp.ones((10, 100))).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_in_mixed_mode_a_step_more_costs_the_memory_of_its_parameters_and_its_product_of_many_terms():
    parameters, product = 10 * 100 * 4, 1000 * 10 * 4  # the product with `w.T` adds up a hundred terms, others ten
    assert compiled_bytes(64) - compiled_bytes(32) < 1.1 * 32 * (parameters + product)
    assert compiled_bytes(64, differentiation="reverse") - compiled_bytes(32, differentiation="reverse") > (
        10 * 32 * (parameters + product)
    )


def test_a_first_order_step_more_costs_no_memory_whatever_its_rule_remembers():
    bytes_of = partial(compiled_bytes, rule=optax.adam(0.1), meta_gradient="first_order")
    assert bytes_of(64) == bytes_of(4)


def test_checkpointed_memory_grows_with_the_root_of_the_steps():
    parameters = 10 * 100 * 4
    grown = compiled_bytes(64, checkpoint=True) - compiled_bytes(16, checkpoint=True)
    assert grown < 1.5 * (2 * 8 - 2 * 4) * parameters  # the segments' starts, and one segment


@pytest.mark.parametrize("adam", [optax.adam(0.1), optax.rmsprop(0.1, eps_in_sqrt=False), optax.amsgrad(0.1)])
def test_a_root_without_eps_root_is_refused_where_it_is_differentiated(adam):
    loop = partial(inner_loop, lambda w, _: (w**2).sum(), jnp.zeros(2), rule=adam, steps=2)
    with pytest.raises(ValueError, match="eps_root above 0"):
        loop()
    assert (loop(meta_gradient="first_order") == 0).all()
    assert (loop(meta_gradient="implicit", proximal=1.0) == 0).all()


def test_a_rule_without_a_derivative_where_a_bias_is_zero_is_refused():
    rule = optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(0.01))
    params = {"kernel": jnp.ones((3, 1)), "bias": jnp.zeros(1)}
    with pytest.raises(ValueError, match="no finite derivative at a gradient, or a bias, of zero"):
        inner_loop(lambda w, _: (w["kernel"] ** 2).sum() + w["bias"].sum(), params, rule=rule, steps=1)


@pytest.mark.parametrize("rule", [0.1, optax.sgd, None])
def test_what_is_no_optimizer_is_refused(rule):
    with pytest.raises(
        ValueError, match=r"rule is .*; it must be an optax transformation, .* or a functional\.InnerRule"
    ):
        inner_loop(lambda w, _: w**2, 1.0, rule=rule, steps=1)


def test_a_traced_proximal_weight_has_an_exact_derivative(x64):
    """Two steps of rate 1/2 on w^2 / 2 + p / 2 (w - 8)^2 from 8 end at 2 + 2 p."""

    def end(weight):
        return inner_loop(lambda w, _: w**2 / 2, 8.0, rule=optax.sgd(0.5), steps=2, proximal=weight)

    np.testing.assert_allclose(end(0.3), 2 + 2 * 0.3, rtol=1e-10, atol=1e-14)
    for slope in (jax.grad(end), jax.jit(jax.grad(end)), lambda p: jax.vmap(jax.grad(end))(p[None])[0]):
        np.testing.assert_allclose(slope(jnp.array(0.3)), 2, rtol=1e-10, atol=1e-14)


def test_an_inner_adam_with_gradients_of_zero_has_a_finite_meta_gradient():
    def loss(w):
        return inner_loop(lambda w, _: (0 * w).sum(), w, rule=optax.adam(0.1, eps_root=1e-8), steps=3).sum()

    np.testing.assert_array_equal(jax.grad(loss)(jnp.ones(2)), jnp.ones(2))


def test_an_optimizer_that_asks_for_the_loss_is_no_rule():
    with pytest.raises(
        ValueError, match=r"rule needs more than gradients, .* inner step provides: .* argument: 'value'"
    ):
        inner_loop(lambda w, _: w**2, 1.0, rule=optax.polyak_sgd(0.1), steps=1)


def test_a_rule_for_whole_tensors_is_not_refused_for_one_of_a_single_number():
    rule = optax.chain(optax.clip_by_block_rms(1.0), optax.sgd(0.1))
    found = inner_loop(lambda w, _: sum((leaf**2).sum() for leaf in w), [jnp.ones(1), jnp.ones(3)], rule=rule, steps=1)
    np.testing.assert_allclose(found[0], 0.9)


def test_a_rule_may_start_from_numbers_of_the_shapes_of_the_parameters():
    rates = jnp.array([[0.1, 0.2, 0.3]])
    rule = InnerRule(
        init=lambda params: rates,
        start=lambda rates, params: (),
        update=lambda gradients, memory, params, rates: (-rates * gradients, memory),
    )
    found = inner_loop(lambda w, _: w.sum(), jnp.ones((1, 3)), rule=rule, steps=1, rule_params=rates)
    np.testing.assert_allclose(found, 1 - rates)


RATE = InnerRule(  # one rate, learned
    init=lambda params: {"rate": jnp.float32(0.1)},
    start=lambda learned, params: (),
    update=lambda gradients, memory, params, learned: (-learned["rate"] * gradients, memory),
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps is -1"),
        ({"unroll": 0}, "unroll is 0"),
        ({"unroll": 2, "checkpoint": True}, "unroll is 2; with checkpoint=True it must be 1"),
        ({"meta_gradient": "third_order"}, "meta_gradient is 'third_order'"),
        ({"differentiation": "forward"}, "differentiation is 'forward'"),
        ({"last_steps": -2}, "last_steps is -2"),
        ({"last_steps": 1.5}, "last_steps is 1.5"),
        ({"checkpoint": "yes"}, "checkpoint is 'yes'"),
        ({"data": np.zeros(3)}, r"data has an array of shape \(3,\)"),
        ({"cg_steps": -1}, "cg_steps is -1"),
        ({"proximal": float("nan")}, "proximal is nan"),
        ({"damping": -1.0}, "damping is -1.0"),
        ({"proximal": None}, "proximal is None; it must be 0 or more"),
        ({"meta_gradient": "implicit"}, "proximal is 0.0"),
        ({"last_steps": 2}, "last_steps is 2, but meta_gradient is 'second_order', .* it is for 'truncated'"),
        ({"meta_gradient": "truncated", "damping": 1.0}, "damping is 1.0, .* it is for 'implicit'"),
        (
            {"meta_gradient": "implicit", "proximal": 1.0, "rule": RATE, "rule_params": {"rate": 0.1}},
            'rule has parameters of its own, but meta_gradient is "implicit"',
        ),
        ({"rule_params": 0.1}, r"rule_params has arrays at \[''\], but rule.init\(params\) has them at no path"),
        ({"rule": RATE}, r"rule_params has arrays at no path, but rule.init\(params\) has them at .*rate"),
    ],
)
def test_refuses_what_no_loop_can_do(options, message):
    with pytest.raises(ValueError, match=message):
        inner_loop(lambda w, _: w**2, 1.0, **{"rule": optax.sgd(0.1), "steps": 1} | options)


def test_an_unknown_option_is_refused_by_its_name():
    with pytest.raises(TypeError, match="steps_last is not an option of an inner loop; there are meta_gradient, "):
        inner_loop(lambda w, _: w**2, 1.0, rule=optax.sgd(0.1), steps=1, steps_last=2)


def test_parameters_without_a_gradient_are_refused_by_their_path():
    params = {"weights": jnp.ones(2), "count": jnp.int32(3)}
    with pytest.raises(ValueError, match=r"params\['count'\] is of int32, which has no gradient"):
        inner_loop(lambda params, _: params["weights"].sum(), params, rule=optax.sgd(0.1), steps=2)


@pytest.mark.parametrize("name", ["proximal", "damping"])
def test_the_derivative_of_an_implicit_minimum_in_its_own_numbers_is_refused(name):
    def found(weight):
        numbers = {"proximal": 1.0, name: weight}
        return inner_loop(lambda w, _: w**2, 1.0, rule=optax.sgd(0.1), steps=2, meta_gradient="implicit", **numbers)

    for function in (jax.grad(found), jax.jit(found), jax.jit(jax.grad(found))):
        with pytest.raises(ValueError, match=f"{name} is traced"):
            function(0.5)
