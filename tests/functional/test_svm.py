"""The support vector machine against scikit-learn's, and its derivative against finite differences."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.svm import LinearSVC, SVC

from jmeta.functional import crammer_singer


def clusters(ways, shots, width, spread=0.7):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(ways), shots)
    features = np.maximum(rng.normal(size=(ways, width))[labels] + spread * rng.normal(size=(ways * shots, width)), 0)
    return jnp.asarray(features), jnp.eye(ways)[labels], labels


def machine(features, targets, mask=None, *, cost=0.1, steps=400):
    mask = jnp.ones(len(features)) if mask is None else mask
    return crammer_singer(features, targets, mask, cost=cost, steps=steps)


@pytest.mark.parametrize(("ways", "shots", "width"), [(5, 5, 64), (20, 1, 16), (5, 1, 1600)])
def test_its_weights_are_those_of_scikit_learn(ways, shots, width, x64):
    features, targets, labels = clusters(ways, shots, width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its stopping rule, at the tolerance asked for
        oracle = LinearSVC(multi_class="crammer_singer", fit_intercept=False, C=0.1, tol=1e-10, max_iter=10**6)
        expected = oracle.fit(np.asarray(features), labels).coef_.T
    largest = np.abs(expected).max()
    found = machine(features, targets, steps=100)  # the number that `metaoptnet` takes
    np.testing.assert_allclose(found, expected, atol=1e-6 * largest)


@pytest.mark.parametrize(("ways", "shots"), [(5, 1), (5, 5), (20, 5)])
def test_what_all_features_have_in_common_does_not_slow_it_down(ways, shots, x64):
    features, targets, _ = clusters(ways, shots, 64)
    features = 1 + 0.1 * features
    expected = machine(features, targets, steps=1000)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(machine(features, targets, steps=100), expected, atol=1e-4 * largest)
    single = (jnp.asarray(array, jnp.float32) for array in (features, targets, np.ones(ways * shots)))
    np.testing.assert_allclose(machine(*single, steps=100), expected, atol=1e-3 * largest)


def test_of_two_classes_it_is_the_machine_of_the_kernel(x64):
    """Two weights w and -w of margin 2 x w: the binary machine has 2 w, and twice the cost."""
    features, targets, labels = clusters(2, 8, 5, spread=1.5)
    features = jnp.concatenate([features, -features])  # a machine whose best bias is zero
    targets, labels = jnp.concatenate([targets, targets[:, ::-1]]), np.concatenate([labels, 1 - labels])
    oracle = SVC(kernel="precomputed", C=0.05, tol=1e-10).fit(np.asarray(features @ features.T), labels)
    weights = oracle.dual_coef_[0] @ np.asarray(features)[oracle.support_]
    found = machine(features, targets, cost=0.025, steps=2000)
    np.testing.assert_allclose(found[:, 1] - found[:, 0], weights, atol=1e-6)


def test_padding_and_classes_that_are_not_there_contribute_nothing(x64):
    features, targets, _ = clusters(4, 3, 6)
    mask = (targets[:, 2] == 0).astype(float).at[0].set(0)
    real = np.flatnonzero(mask)
    expected = machine(features[real], targets[real][:, [0, 1, 3]])
    found = machine(features, targets, mask)
    np.testing.assert_allclose(found[:, [0, 1, 3]], expected, rtol=1e-10, atol=1e-12)
    assert (found[:, 2] == 0).all()


def test_a_weight_is_how_often_an_example_counts(x64):
    features, targets, _ = clusters(3, 2, 6, spread=1.5)
    rows = np.array([0, 0, 1, 2, 2, 2, 2, 4, 4, 5, 5])
    found = machine(features, targets, jnp.array([1, 0.5, 2, 0, 1, 1]), cost=0.2, steps=1000)
    expected = machine(features[rows], targets[rows], cost=0.1, steps=1000)
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_its_derivative_is_that_of_the_solution(x64):
    rng = np.random.default_rng(0)
    features, targets, _ = clusters(3, 2, 4)
    direction, weights = rng.normal(size=features.shape), rng.normal(size=(4, 3))

    def total(x, steps):
        return (machine(x, targets, cost=0.5, steps=steps) * weights).sum()

    slope = jax.jit(lambda x: jax.jvp(partial(total, steps=400), (x,), (direction,))[1])(features)
    difference = (total(features + 1e-5 * direction, 3000) - total(features - 1e-5 * direction, 3000)) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-5)
    gradient = jax.jit(jax.grad(partial(total, steps=400)))(features)
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-10)


@jax.jit
@jax.value_and_grad
def size_of_outputs(x, y):
    return jnp.square(x @ machine(x, y, steps=50)).sum()


@pytest.mark.parametrize("width", [4, 2000])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-10, 1e-6, 100.0])
def test_duplicates_stay_finite_in_single_precision(width, scale):
    rng = np.random.default_rng(0)
    x = scale * jnp.asarray(np.repeat(rng.normal(size=(3, width)), 4, axis=0), jnp.float32)
    value, gradient = size_of_outputs(x, jnp.repeat(jnp.eye(3), 4, axis=0))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
