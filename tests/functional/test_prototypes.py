"""Prototypes and distances against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jmeta.functional import (
    cosine_similarities,
    gaussians,
    prototypes,
    squared_distances,
    squared_mahalanobis_distances,
)


def test_prototypes_are_means_of_real_examples_of_unequal_classes(x64):
    features = np.random.default_rng(0).normal(size=(6, 4))
    labels, mask = np.array([0, 1, 1, 0, 1, 2]), np.array([1.0, 1, 1, 1, 0, 0])
    result = prototypes(jnp.asarray(features), jnp.eye(3)[labels], jnp.asarray(mask))
    expected = [features[[0, 3]].mean(0), features[[1, 2]].mean(0), np.zeros(4)]
    np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-14)


def test_distances_and_cosines_equal_numpy(x64):
    q, p = np.random.default_rng(0).normal(size=(2, 5, 4))
    expected = ((q[:, None] - p[None]) ** 2).sum(-1)
    np.testing.assert_allclose(squared_distances(jnp.asarray(q), jnp.asarray(p)), expected, rtol=1e-10, atol=1e-13)
    cosines = q @ p.T / np.outer(np.linalg.norm(q, axis=1), np.linalg.norm(p, axis=1))
    np.testing.assert_allclose(cosine_similarities(jnp.asarray(q), jnp.asarray(p)), cosines, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("length", [300.0, 1e-4])
def test_cosines_of_half_precision_are_of_vectors_of_any_length(length):
    vectors = jnp.array([[length, 0], [0, length]], jnp.float16)
    np.testing.assert_allclose(cosine_similarities(vectors, vectors), np.eye(2), rtol=1e-3)


def test_prototypes_of_half_precision_are_finite_where_the_sum_of_a_class_is_not():
    features, ones = jnp.full((400, 1), 200.0, jnp.float16), jnp.ones((400, 1), jnp.float16)
    found = prototypes(features, ones, ones[:, 0])
    assert found.dtype == jnp.float16
    np.testing.assert_array_equal(found, [[200.0]])


def test_prototypes_of_soft_targets_are_weighted_means():
    found = prototypes(jnp.array([[1.0], [4.0]]), jnp.array([[0.25, 0.75], [0.5, 0.5]]), jnp.ones(2))
    np.testing.assert_allclose(found, [[3.0], [2.2]], rtol=1e-6)


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-22, 1e-20, 1e-19])
def test_the_cosine_of_a_vector_too_short_to_square_is_zero_with_a_finite_gradient(length):
    vector = jnp.array([[length, 0.0, 0.0]])
    cosine, gradient = jax.value_and_grad(lambda q: cosine_similarities(q, jnp.ones((1, 3))).sum())(vector)
    assert cosine == 0
    assert np.isfinite(gradient).all()


def test_mahalanobis_distances_equal_numpy_s_for_classes_of_three_two_and_one(x64):
    rng = np.random.default_rng(0)
    features, queries = rng.normal(size=(7, 4)), rng.normal(size=(5, 4))
    labels, mask = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([1.0, 1, 1, 1, 1, 1, 0])
    found = squared_mahalanobis_distances(queries, gaussians(features, jnp.eye(3)[labels], jnp.asarray(mask)))
    everything = np.cov(features[:6].T)
    for index, rows in enumerate(([0, 1, 2], [3, 4], [5])):
        own = np.cov(features[rows].T) if len(rows) > 1 else np.zeros((4, 4))
        share = len(rows) / (len(rows) + 1)
        covariance = share * own + (1 - share) * everything + np.eye(4)
        apart = queries - features[rows].mean(0)
        expected = np.einsum("qi,ij,qj->q", apart, np.linalg.inv(covariance), apart)
        np.testing.assert_allclose(found[:, index], expected, rtol=1e-10, atol=1e-12)


def test_gaussians_of_examples_that_are_there_twice_by_half_are_theirs(x64):
    features, targets = np.random.default_rng(0).normal(size=(6, 3)), jnp.eye(2)[np.arange(6) % 2]
    once = gaussians(features, targets, jnp.ones(6))
    twice = gaussians(np.tile(features, (2, 1)), jnp.tile(targets, (2, 1)), jnp.full(12, 0.5))
    np.testing.assert_allclose(twice.points, once.points, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(twice.precisions, once.precisions, rtol=1e-10, atol=1e-12)


def test_squared_distances_of_half_precision_are_found_in_single():
    queries, points = jnp.full((1, 1600), 7.0, jnp.float16), jnp.zeros((1, 1600), jnp.float16)
    np.testing.assert_array_equal(squared_distances(queries, points), 78400.0)  # beyond the largest, 65504


def test_mahalanobis_distances_are_finite_where_rounding_is_above_one():
    features = jnp.asarray(1e4 * np.random.default_rng(0).normal(size=(5, 64)), jnp.float32)
    assert np.isfinite(squared_mahalanobis_distances(features, gaussians(features, jnp.eye(5), jnp.ones(5)))).all()


def test_mahalanobis_distances_of_half_precision_are_found_in_single():
    features = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.bfloat16)
    targets, mask = jnp.eye(2)[np.arange(8) % 2], jnp.ones(8)
    distances = squared_mahalanobis_distances(features, gaussians(features, targets, mask))
    single = features.astype(jnp.float32)
    expected = squared_mahalanobis_distances(single, gaussians(single, targets, mask))
    np.testing.assert_array_equal(distances, expected)


def test_mahalanobis_distances_have_the_derivatives_that_differences_have(x64):
    features, queries = np.random.default_rng(0).normal(size=(2, 4, 3))

    @jax.jit
    def distances(features, queries):
        return squared_mahalanobis_distances(
            queries, gaussians(features, jnp.eye(2)[np.array([0, 0, 1, 1])], jnp.ones(4))
        )

    check_grads(distances, (features, queries), order=2)


def test_covariances_of_repeated_examples_in_many_dimensions_stay_well_conditioned():
    features = jnp.repeat(jax.random.normal(jax.random.key(0), (2, 200)), 3, axis=0)
    targets, mask = jnp.repeat(jnp.eye(2), 3, axis=0), jnp.ones(6)

    def total(features):
        return squared_mahalanobis_distances(features, gaussians(features, targets, mask)).sum()

    assert np.isfinite(jax.jit(jax.grad(total))(features)).all()
