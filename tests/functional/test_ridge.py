"""Ridge regression against NumPy, and where it is hard."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.functional import ridge_regression


def normal_equations(x, y, regularisation):
    return np.linalg.solve(x.T @ x + regularisation * np.eye(x.shape[1]), x.T @ y)


@pytest.mark.parametrize("width", [3, 7, 200], ids=["more examples", "as many", "more features"])
def test_it_solves_the_normal_equations_in_whichever_space_is_smaller(width, x64):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, width)), rng.normal(size=(7, 2))
    weights = ridge_regression(jnp.asarray(x), jnp.asarray(y), jnp.ones(7), 0.3)
    np.testing.assert_allclose(weights, normal_equations(x, y, 0.3), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("width", [3, 20])
def test_padding_contributes_nothing(width, x64):
    rng = np.random.default_rng(0)
    x, y, mask = rng.normal(size=(7, width)), rng.normal(size=(7, 2)), np.array([1.0, 0, 1, 1, 0, 1, 1])
    weights = ridge_regression(jnp.asarray(x), jnp.asarray(y), jnp.asarray(mask), 0.3)
    np.testing.assert_allclose(weights, normal_equations(x[mask > 0], y[mask > 0], 0.3), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("width", [3, 20])
def test_a_weight_is_how_often_an_example_counts_and_has_a_slope_also_at_zero(width, x64):
    rng = np.random.default_rng(0)
    x, y, mask = rng.normal(size=(4, width)), rng.normal(size=(4, 2)), jnp.array([1, 0.5, 2, 0])
    rows = np.array([0, 0, 1, 2, 2, 2, 2])
    weights = ridge_regression(jnp.asarray(x), jnp.asarray(y), mask, 0.3)
    np.testing.assert_allclose(weights, normal_equations(x[rows], y[rows], 0.6), rtol=1e-10, atol=1e-12)
    slope = jax.grad(lambda mask: ridge_regression(jnp.asarray(x), jnp.asarray(y), mask, 0.3).sum())(mask)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("width", [4, 2000])
def test_duplicates_and_little_regularisation_stay_finite_in_single_precision(width):
    """Examples four times over: a matrix of a fifth of its rank, and a regularisation below its rounding error."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.repeat(rng.normal(size=(5, width)), 4, axis=0), jnp.float32)
    y = jnp.repeat(jnp.eye(5), 4, axis=0)

    def total(x, regularisation):
        return jnp.square(x @ ridge_regression(x, y, jnp.ones(20), regularisation) - y).sum()

    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(x, 1e-9)
    assert all(np.isfinite(leaf).all() for leaf in (value, *gradients))
    assert width < 5 or value < 1e-2
