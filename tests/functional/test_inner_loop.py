"""The inner loop against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jmeta.functional import inner_loop


def test_one_step_on_linear_regression_equals_the_formula(x64):
    """L(w) = |Xw - y|^2 / 2K: w' = w - a X'(Xw - y) / K, and dw'/dw = I - a X'X / K."""
    rng = np.random.default_rng(0)
    x, y, w, rate = rng.normal(size=(7, 3)), rng.normal(size=7), rng.normal(size=3), 0.1

    def adapted(w):
        def objective(w, _):
            return jnp.square(x @ w - y).sum() / 14

        return inner_loop(objective, w, rule=optax.sgd(rate), steps=1)

    np.testing.assert_allclose(adapted(w), w - rate * x.T @ (x @ w - y) / 7, atol=1e-14)
    np.testing.assert_allclose(jax.jacobian(adapted)(w), np.eye(3) - rate * x.T @ x / 7, atol=1e-14)


def test_a_first_order_loop_has_the_identity_for_its_jacobian(x64):
    def adapted(w):
        return inner_loop(
            lambda w, _: jnp.square(w).sum(), w, rule=optax.sgd(0.1), steps=3, meta_gradient="first_order"
        )

    np.testing.assert_allclose(jax.jacobian(adapted)(jnp.ones(2)), np.eye(2), atol=1e-14)


def test_no_steps_change_nothing():
    assert inner_loop(lambda w, _: w**2, 3.0, rule=optax.sgd(0.1), steps=0) == 3.0
