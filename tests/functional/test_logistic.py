"""Logistic regression against scikit-learn, and its derivative against the equations of the optimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jmeta.functional import logistic_regression


def clusters(ways, shots, width):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(ways), shots)
    features = rng.normal(size=(ways, width))[labels] + 0.7 * rng.normal(size=(ways * shots, width))
    return jnp.asarray(features), jnp.eye(ways)[labels], labels


def fit(features, targets, mask=None, *, regularisation=0.5, steps=12, cg_steps=100):
    mask = jnp.ones(len(features)) if mask is None else mask
    return logistic_regression(features, targets, mask, regularisation, steps=steps, cg_steps=cg_steps)


@pytest.mark.parametrize(("ways", "shots", "width"), [(3, 10, 4), (5, 2, 400)])
@pytest.mark.parametrize("regularisation", [1.0, 0.01])
def test_its_weights_are_those_of_scikit_learn(ways, shots, width, regularisation, x64):
    features, targets, labels = clusters(ways, shots, width)
    oracle = LogisticRegression(C=1 / regularisation, fit_intercept=False, tol=1e-8, solver="newton-cg", max_iter=500)
    expected = oracle.fit(np.asarray(features), labels).coef_.T
    found = fit(features, targets, regularisation=regularisation)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())  # as exact as scikit-learn is
    slope = features.T @ (jax.nn.softmax(features @ found) - targets) + regularisation * found
    assert np.abs(slope).max() < 1e-12


@pytest.mark.parametrize("mask", ["bfloat16", "bool"])
def test_features_of_half_precision_are_solved_for_in_single(mask, x64):
    features, targets, _ = clusters(3, 4, 5)
    half = features.astype(jnp.bfloat16)
    expected = fit(half.astype(float), targets)
    found = fit(half, targets.astype(jnp.bfloat16), jnp.ones(12, mask))
    assert found.dtype == jnp.bfloat16
    assert np.linalg.norm(found.astype(float) - expected) < 0.01 * np.linalg.norm(expected)


def test_its_derivatives_are_those_of_the_optimum(x64):
    """With a Hessian made entry by entry: dW = -H^-1 d(gradient), in features and in the regularisation."""
    features, targets, _ = clusters(3, 4, 5)
    weights = fit(features, targets)

    def gradient(weights, features, regularisation):
        slope = features.T @ (jax.nn.softmax(features @ weights) - targets) + regularisation * weights
        return slope.ravel()

    derivatives = jax.jit(jax.jacobian(gradient, argnums=(0, 1, 2)))
    hessian, by_features, by_regularisation = derivatives(weights, features, 0.5)
    inverse = np.linalg.inv(hessian.reshape(15, 15))
    found = jax.jit(jax.jacrev(lambda x, r: fit(x, targets, regularisation=r), argnums=(0, 1)))(features, 0.5)
    np.testing.assert_allclose(found[0].reshape(15, -1), -inverse @ by_features.reshape(15, -1), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found[1].ravel(), -inverse @ by_regularisation, rtol=1e-9, atol=1e-9)


def test_padding_and_classes_that_are_not_there_contribute_nothing(x64):
    features, targets, _ = clusters(4, 3, 6)
    mask = (targets[:, 2] == 0).astype(float).at[0].set(0)
    real = np.flatnonzero(mask)
    expected = fit(features[real], targets[real][:, [0, 1, 3]])
    found = fit(features, targets, mask)
    np.testing.assert_allclose(found[:, [0, 1, 3]], expected, rtol=1e-10, atol=1e-12)
    assert (found[:, 2] == 0).all()


def test_a_weight_is_how_often_an_example_counts(x64):
    features, targets, _ = clusters(3, 2, 4)
    rows = np.array([0, 0, 1, 2, 2, 2, 2, 4, 4, 5, 5])
    found = fit(features, targets, jnp.array([1, 0.5, 2, 0, 1, 1]), regularisation=0.5)
    np.testing.assert_allclose(found, fit(features[rows], targets[rows], regularisation=1.0), rtol=1e-10, atol=1e-12)


def size_of_fit(x, regularisation):
    y = jnp.repeat(jnp.eye(3), 4, axis=0)
    return jnp.square(x @ fit(x, y, regularisation=regularisation)).sum()


with_derivatives = jax.jit(jax.vmap(jax.value_and_grad(size_of_fit, argnums=(0, 1)), in_axes=(0, None)))


@pytest.mark.parametrize("width", [4, 2000])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_duplicates_stay_finite_in_single_precision(width, scale):
    drawn = np.random.default_rng(0).normal(size=(20, 3, width))
    x = scale * jnp.asarray(np.repeat(drawn, 4, axis=1), jnp.float32)
    value, gradients = with_derivatives(x, 1e-3)
    assert all(np.isfinite(leaf).all() for leaf in (value, *gradients))


def test_it_does_not_step_over_the_minimum():
    """Labels that contradict each other far out: where a full Newton step from zero goes uphill."""
    x = jnp.array([[1.0], [1.0], [60.0], [-1.0], [-60.0]])
    y = jnp.eye(2)[jnp.array([0, 1, 0, 0, 1])]
    weights = fit(x, y, regularisation=1e-4, steps=30)
    slope = x.T @ (jax.nn.softmax(x @ weights) - y) + 1e-4 * weights
    assert np.abs(slope).max() < 1e-3
