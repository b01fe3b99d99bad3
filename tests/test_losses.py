"""Losses and intervals against NumPy and SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jmeta import functional, losses
from jmeta.functional.classes import exclude_absent

RNG = np.random.default_rng(0)
OUTPUTS, LABELS = RNG.normal(size=(40, 3)), RNG.integers(3, size=40)
MASK = RNG.integers(2, size=40).astype(float)
REAL = MASK == 1


def labelled():
    return jnp.asarray(OUTPUTS), jnp.eye(3)[LABELS], jnp.asarray(MASK)


def test_cross_entropy_and_accuracy_are_means_over_real_examples(x64):
    logs = scipy.special.log_softmax(OUTPUTS, axis=1)[np.arange(40), LABELS]
    np.testing.assert_allclose(losses.cross_entropy(*labelled()), -logs[REAL].mean(), atol=1e-14)
    correct = OUTPUTS.argmax(1) == LABELS
    np.testing.assert_allclose(losses.accuracy(*labelled()), correct[REAL].mean(), atol=1e-14)


def test_a_cross_entropy_of_one_class_is_refused():
    with pytest.raises(ValueError, match="for regression give loss_fn"):
        losses.cross_entropy(jnp.zeros((4, 1)), jnp.ones((4, 1)), jnp.ones(4))


def test_accuracy_in_half_precision_counts_beyond_256():
    targets = jnp.eye(2, dtype=jnp.bfloat16)[jnp.zeros(600, int)]
    outputs = targets.at[:9].set(jnp.array([0, 1]))
    found = losses.accuracy(outputs, targets, jnp.ones(600, jnp.bfloat16))
    np.testing.assert_allclose(found, 591 / 600, rtol=1e-6)


def test_squared_error_is_the_mean_over_real_examples_and_dimensions(x64):
    expected = ((OUTPUTS - np.eye(3)[LABELS]) ** 2)[REAL].mean()
    np.testing.assert_allclose(losses.squared_error(*labelled()), expected, atol=1e-14)


def test_nothing_at_a_masked_row_reaches_a_loss():
    outputs = jnp.where(MASK[:, None] == 1, labelled()[0], jnp.nan)
    assert np.isfinite(losses.cross_entropy(outputs, *labelled()[1:]))


def test_calibration_error_equals_a_loop_over_bins(x64):
    probabilities = scipy.special.softmax(OUTPUTS, axis=1)[REAL]
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == LABELS[REAL]
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    np.testing.assert_allclose(losses.calibration_error(*labelled()), expected, atol=1e-12)


def test_the_interval_is_scipys_normal_interval(x64):
    values = RNG.normal(size=600)
    mean, ci95 = losses.mean_and_interval(jnp.asarray(values))
    low, high = scipy.stats.norm.interval(0.95, values.mean(), scipy.stats.sem(values))
    np.testing.assert_allclose((mean - ci95, mean + ci95), (low, high), atol=1e-14)


def test_numpys_outputs_of_double_precision_are_judged_in_that_of_jax():
    """A warning of JAX would be an error here."""
    outputs, targets, mask = np.arange(6.0).reshape(2, 3), np.eye(3)[[2, 0]], np.ones(2)
    for judge in (losses.cross_entropy, losses.squared_error, losses.accuracy, losses.calibration_error):
        assert judge(outputs, targets, mask).dtype == jnp.float32
    assert functional.ridge_regression(outputs, targets, mask, 1.0).dtype == jnp.float32
    assert functional.crammer_singer(outputs, targets, mask, cost=1.0, steps=2).dtype == jnp.float32
    assert functional.gaussians(outputs, targets, mask).points.dtype == jnp.float32
    assert np.isfinite(functional.class_attention(outputs[:1, :2], targets, mask)).all()
    assert np.isfinite(exclude_absent(outputs, np.array([True, False, True]))).all()


def test_absent_classes_have_no_probability_and_cost_nothing():
    outputs = exclude_absent(jnp.zeros((1, 3)), jnp.array([True, True, False]))
    np.testing.assert_allclose(losses.cross_entropy(outputs, jnp.eye(3)[:1], jnp.ones(1)), np.log(2), rtol=1e-6)


def test_a_model_of_the_wrong_width_is_named():
    with pytest.raises(ValueError, match=r"outputs have shape \(4, 2\).*output width must be 5"):
        losses.cross_entropy(jnp.zeros((4, 2)), jnp.zeros((4, 5)), jnp.ones(4))
