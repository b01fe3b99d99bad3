"""The implicit meta-gradient against a closed form and against unrolling, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta.functional import inner_loop

RNG = np.random.default_rng(1)
X, Y, START = RNG.normal(size=(8, 4)), RNG.normal(size=8), RNG.normal(size=4)
WEIGHT = 0.7
HESSIAN = 2 * X.T @ X / 8
IMPLICIT = {"meta_gradient": "implicit", "cg_steps": 10}
UNROLLED = {"meta_gradient": "second_order"}


def adapted(start, y=Y, *, steps=300, mode=IMPLICIT, **options):
    """The minimum of |Xw - y|^2 / K + WEIGHT / 2 |w - start|^2."""
    return inner_loop(
        lambda w, _: jnp.square(X @ w - y).mean(),
        start,
        rule=optax.sgd(0.1),
        steps=steps,
        proximal=WEIGHT,
        **mode | options,
    )


def test_the_minimum_and_its_jacobian_in_the_start_equal_the_closed_form(x64):
    inverse = np.linalg.inv(HESSIAN + WEIGHT * np.eye(4))
    np.testing.assert_allclose(adapted(START), inverse @ (WEIGHT * START + 2 * X.T @ Y / 8), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(jax.jacrev(adapted)(START), WEIGHT * inverse, rtol=1e-10, atol=1e-12)


def test_the_jacobian_in_data_that_the_objective_closes_over_equals_the_closed_form(x64):
    jacobian = jax.jacrev(adapted, argnums=1)(START, Y)
    np.testing.assert_allclose(jacobian, np.linalg.inv(HESSIAN + WEIGHT * np.eye(4)) @ X.T / 4, rtol=1e-10, atol=1e-12)


def test_the_minimum_is_that_of_the_last_steps_data(x64):
    """After steps on three times the loss; its jacobian is that of this loss alone, in what it closes over too."""

    def found(start, y):
        scales = jnp.ones(300).at[:2].set(3.0)
        objective = lambda w, scale: scale * jnp.square(X @ w - y).mean()  # noqa: E731
        options = {"rule": optax.sgd(0.1), "steps": 300, "proximal": WEIGHT, **IMPLICIT}
        return inner_loop(objective, start, data=scales, **options)

    np.testing.assert_allclose(found(START, Y), adapted(START), rtol=1e-10, atol=1e-12)
    jacobians = (jax.jacrev(function, argnums=(0, 1))(START, Y) for function in (found, adapted))
    for one, other in zip(*jacobians, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def test_the_unrolled_jacobian_converges_to_it_as_steps_grow(x64):
    limit = jax.jacrev(adapted)(START)
    errors = [
        np.abs(jax.jacrev(partial(adapted, steps=steps, mode=UNROLLED))(START) - limit).max() for steps in (10, 40, 400)
    ]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-10


@pytest.mark.parametrize("scale", [1.0, 1e-14])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_of_conjugate_gradient_beyond_the_solution_change_nothing(dtype, scale, x64):
    curvature = jnp.asarray([1e-3, 1e-4], dtype)

    def found(start, cg_steps):
        return inner_loop(
            lambda w, _: (curvature * w**2).sum(),
            start,
            rule=optax.sgd(0.1),
            steps=5,
            proximal=0.01,
            meta_gradient="implicit",
            cg_steps=cg_steps,
        ).sum() * jnp.asarray(scale, dtype)

    expected = scale * 0.01 / (0.01 + 2 * curvature)
    for cg_steps in (5, 20, 100):
        gradient = jax.grad(found)(jnp.ones(2, dtype), cg_steps)
        np.testing.assert_allclose(gradient, expected, rtol=10 * jnp.finfo(dtype).eps)


def test_parameters_may_be_of_different_precisions():
    def found(start):
        end = inner_loop(
            lambda w, _: (0.1 * w["single"] ** 2).sum() + (0.1 * w["half"].astype(jnp.float32) ** 2).sum(),
            start,
            rule=optax.sgd(0.1),
            steps=2,
            proximal=np.float64(1),  # which JAX does not count as of any precision, as it does Python's 1.0
            meta_gradient="implicit",
        )
        return end["single"].sum() + end["half"].astype(jnp.float32).sum()

    gradient = jax.grad(found)({"single": jnp.ones(2), "half": jnp.ones(2, jnp.bfloat16)})
    assert gradient["half"].dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient["single"], 1 / 1.2, rtol=1e-6)
    np.testing.assert_allclose(gradient["half"].astype(jnp.float32), 1 / 1.2, rtol=1e-2)


def test_conjugate_gradient_starts_at_the_first_order_answer_and_improves_on_it(x64):
    exact = jax.jacrev(adapted)(START)
    guessed = [jax.jacrev(partial(adapted, cg_steps=steps))(START) for steps in range(4)]
    np.testing.assert_allclose(guessed[0], np.eye(4), rtol=1e-10, atol=1e-14)
    errors = [np.linalg.norm(guess - exact) for guess in guessed]
    assert errors[0] > errors[1] > errors[2] > errors[3]


def test_damping_is_added_to_the_weight_in_the_meta_gradient_alone(x64):
    np.testing.assert_array_equal(adapted(START, damping=3.0), adapted(START))
    expected = np.linalg.inv(np.eye(4) + HESSIAN / (WEIGHT + 3.0))
    np.testing.assert_allclose(jax.jacrev(partial(adapted, damping=3.0))(START), expected, rtol=1e-10, atol=1e-12)


def test_it_can_be_differentiated_once_more_under_vmap(x64):
    """On a quartic, whose Hessian is not constant; unrolling is the reference."""

    def slope(scale, mode):
        def minimum(start):
            loop = partial(inner_loop, rule=optax.sgd(0.05), steps=400, proximal=WEIGHT, **mode)
            objective = lambda w, _: jnp.mean((X @ w - scale * Y) ** 4) / 50  # noqa: E731
            return loop(objective, start).sum()

        return jnp.square(jax.grad(minimum)(START)).sum()

    scales = jnp.array([0.5, 1.0])
    found, expected = (jax.jit(jax.vmap(jax.grad(partial(slope, mode=mode))))(scales) for mode in (IMPLICIT, UNROLLED))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (abs(expected) > 1e-3).all()


def test_memory_does_not_depend_on_the_number_of_steps(x64):
    def compiled_bytes(steps):
        loss = jax.jit(jax.grad(lambda start: adapted(start, steps=steps).sum()))
        return loss.lower(jnp.ones(4)).compile().memory_analysis().temp_size_in_bytes

    assert compiled_bytes(64) == compiled_bytes(2)


@pytest.mark.parametrize("steps", [0, 3])
def test_the_proximal_term_holds_in_every_mode(x64, steps):
    """A step is w' = w - 0.1 (grad L(w) + WEIGHT (w - start))."""
    expected = START
    for _ in range(steps):
        expected = expected - 0.1 * (2 * X.T @ (X @ expected - Y) / 8 + WEIGHT * (expected - START))
    for mode in (UNROLLED, {"meta_gradient": "first_order"}, {"meta_gradient": "truncated"}, IMPLICIT):
        np.testing.assert_allclose(adapted(START, steps=steps, mode=mode), expected, rtol=1e-10, atol=1e-13)


def test_a_derivative_of_it_by_few_steps_of_conjugate_gradient_is_near_and_in_proportion_to_its_cotangent(x64):
    """The minimum is s / (1 + H), the meta-gradient of half its square s / (1 + H)^2."""
    hessian = jnp.linspace(0.0, 10.0, 50)

    def meta_gradient(start):
        def half_square(start):
            objective = lambda w, _: (hessian * w**2).sum() / 2  # noqa: E731
            options = {"rule": optax.sgd(0.1), "steps": 400, "proximal": 1.0, "meta_gradient": "implicit"}
            return jnp.square(inner_loop(objective, start, cg_steps=5, **options)).sum() / 2

        return jax.grad(half_square)(start)

    _, pull_back = jax.vjp(meta_gradient, jnp.ones(50))
    large, small = (pull_back(size * jnp.ones(50))[0] for size in (1.0, 1e-6))
    np.testing.assert_allclose(small, 1e-6 * large, rtol=1e-6, atol=1e-12)
    expected = 1 / (1 + hessian) ** 2
    assert np.linalg.norm(large - expected) < 0.1 * np.linalg.norm(expected)
