"""Losses and intervals against NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jmeta import functional, losses
from jmeta.functional.classes import exclude_absent
from jmeta.types import Examples

RNG = np.random.default_rng(0)
OUTPUTS, LABELS = RNG.normal(size=(40, 3)), RNG.integers(3, size=40)
MASK = RNG.integers(2, size=40).astype(float)
REAL = MASK == 1


def labelled():
    return jnp.asarray(OUTPUTS), jnp.eye(3)[LABELS], jnp.asarray(MASK)


def test_cross_entropy_and_accuracy_are_means_over_real_examples(x64):
    logs = scipy.special.log_softmax(OUTPUTS, axis=1)[np.arange(40), LABELS]
    np.testing.assert_allclose(losses.cross_entropy(*labelled()), -logs[REAL].mean(), rtol=1e-10, atol=1e-14)
    correct = OUTPUTS.argmax(1) == LABELS
    np.testing.assert_allclose(losses.accuracy(*labelled()), correct[REAL].mean(), rtol=1e-10, atol=1e-14)


def test_a_cross_entropy_of_one_class_is_refused():
    with pytest.raises(ValueError, match=r"For regression, pass loss_fn=losses\.squared_error"):
        losses.cross_entropy(jnp.zeros((4, 1)), jnp.ones((4, 1)), jnp.ones(4))


def test_a_small_cross_entropy_in_half_precision_is_not_rounded_away():
    labelled = jnp.array([[8.0, 0, 0, 0, 0]], jnp.bfloat16), jnp.eye(5)[:1], jnp.ones(1)
    np.testing.assert_allclose(losses.cross_entropy(*labelled), np.log1p(4 * np.exp(-8)), rtol=1e-3)


def test_accuracy_in_half_precision_counts_beyond_256():
    targets = jnp.eye(2, dtype=jnp.bfloat16)[jnp.zeros(600, int)]
    outputs = targets.at[:9].set(jnp.array([0, 1]))
    found = losses.accuracy(outputs, targets, jnp.ones(600, jnp.bfloat16))
    np.testing.assert_allclose(found, 591 / 600, rtol=1e-6)


def test_examples_of_a_class_are_counted_beyond_256_in_half_precision():
    targets = jnp.tile(jnp.eye(2, dtype=jnp.bfloat16), (301, 1))
    examples = Examples(jnp.zeros((602, 1)), targets, jnp.ones(602, jnp.bfloat16))
    np.testing.assert_array_equal(losses.class_counts(examples), [301, 301])


def test_squared_error_is_the_mean_over_real_examples_and_dimensions(x64):
    expected = ((OUTPUTS - np.eye(3)[LABELS]) ** 2)[REAL].mean()
    np.testing.assert_allclose(losses.squared_error(*labelled()), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("weights", [[0.2, 0.3, 0.0], [1.0, 0.5, 0.25]])
def test_a_mean_may_have_weights_in_place_of_a_mask(weights):
    values = np.array([1.0, 5.0, 9.0])
    found = losses.masked_mean(*(jnp.asarray(array, jnp.float32) for array in (values, weights)))
    np.testing.assert_allclose(found, np.average(values, weights=weights), rtol=1e-6)


def test_a_mean_of_nothing_is_zero_with_a_gradient_of_zero():
    mean = lambda values: losses.masked_mean(values, jnp.zeros(2))  # noqa: E731
    values = jnp.array([1.0, jnp.nan])
    assert mean(values) == 0
    np.testing.assert_array_equal(jax.grad(mean)(values), 0)


def test_errors_in_half_precision_are_added_up_and_squared_beyond_65504():
    outputs = jnp.full((1000, 1), 300.0, jnp.float16)
    labelled = jnp.zeros_like(outputs), jnp.ones(1000)
    np.testing.assert_allclose(losses.squared_error(outputs, *labelled), 90000)
    gaussian = losses.Gaussian(outputs, jnp.ones_like(outputs))
    np.testing.assert_allclose(losses.gaussian_nll(gaussian, *labelled), 45000 + np.log(2 * np.pi) / 2, rtol=1e-6)


def test_a_likelihood_of_outputs_without_a_deviation_is_refused():
    with pytest.raises(ValueError, match=r"outputs are an array; they must be a losses\.Gaussian"):
        losses.gaussian_nll(jnp.zeros((2, 1)), jnp.zeros((2, 1)), jnp.ones(2))


@pytest.mark.parametrize("loss_fn", [losses.cross_entropy, losses.squared_error, losses.gaussian_nll])
def test_nothing_at_a_masked_row_reaches_a_loss_or_its_gradient(loss_fn):
    def loss(outputs, targets):
        predicted = losses.Gaussian(outputs, jnp.exp(outputs)) if loss_fn is losses.gaussian_nll else outputs
        return loss_fn(predicted, targets, jnp.asarray(MASK))

    outputs, targets, _ = labelled()
    value, gradient = jax.value_and_grad(loss)(outputs, targets)
    hidden = (jnp.where(REAL[:, None], leaf, jnp.nan) for leaf in (outputs, targets))
    found, slope = jax.value_and_grad(loss)(*hidden)
    np.testing.assert_allclose(found, value, rtol=1e-6)
    np.testing.assert_allclose(slope[REAL], gradient[REAL], rtol=1e-6)
    assert (gradient[~REAL] == 0).all()
    if loss_fn is not losses.gaussian_nll:  # whose deviations are a function of the NaN here
        assert (slope[~REAL] == 0).all()


@pytest.mark.parametrize("judge", [losses.accuracy, losses.calibration_error])
def test_labels_in_place_of_targets_and_masks_of_another_shape_are_refused(judge):
    outputs, targets, mask = labelled()
    with pytest.raises(ValueError, match=r"targets have shape \(40,\); they must be \[K, N\] one-hot"):
        judge(outputs, jnp.asarray(LABELS), mask)
    with pytest.raises(ValueError, match=r"outputs have shape \(40, 3\), but targets have \(40, 2\)"):
        judge(outputs, targets[:, :2], mask)
    with pytest.raises(ValueError, match=r"mask has shape \(40, 1\), but the values it masks have \(40,\)"):
        judge(outputs, targets, mask[:, None])


def test_a_calibration_error_is_of_one_bin_or_more():
    with pytest.raises(ValueError, match="bins is 0"):
        losses.calibration_error(*labelled(), bins=0)


def test_the_calibration_error_of_half_precision_counts_beyond_256_and_of_nothing_is_zero():
    targets = jnp.eye(2, dtype=jnp.bfloat16)[jnp.zeros(3000, int)]
    outputs = 100 * (1 - targets)  # sure of the other class
    np.testing.assert_allclose(losses.calibration_error(outputs, targets, jnp.ones(3000, jnp.bfloat16)), 1)
    assert losses.calibration_error(outputs, targets, jnp.zeros(3000)) == 0


def test_what_all_examples_weigh_changes_no_mean_and_no_calibration(x64):
    outputs, targets, mask = labelled()
    for judge in (losses.cross_entropy, losses.accuracy, losses.calibration_error):
        np.testing.assert_allclose(judge(outputs, targets, mask / 8), judge(outputs, targets, mask), rtol=1e-12)


@pytest.mark.parametrize(("options", "bins"), [({}, 15), ({"bins": 4}, 4)])
def test_calibration_error_equals_a_loop_over_bins(x64, options, bins):
    probabilities = scipy.special.softmax(OUTPUTS, axis=1)[REAL]
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == LABELS[REAL]
    expected = 0.0
    for low in np.arange(bins) / bins:
        inside = (confidence > low) & (confidence <= low + 1 / bins)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    np.testing.assert_allclose(losses.calibration_error(*labelled(), **options), expected, rtol=1e-10, atol=1e-12)


def test_the_interval_is_scipys_normal_interval(x64):
    values = RNG.normal(size=600)
    mean, ci95 = losses.mean_and_interval(jnp.asarray(values))
    low, high = scipy.stats.norm.interval(0.95, values.mean(), scipy.stats.sem(values))
    np.testing.assert_allclose((mean - ci95, mean + ci95), (low, high), rtol=1e-10, atol=1e-14)


def test_one_value_has_no_interval():
    with pytest.raises(ValueError, match="values has 1 of them; an interval needs at least 2"):
        losses.mean_and_interval(np.ones(1))


def test_an_infinite_value_has_an_infinite_mean_and_no_interval():
    mean, ci95 = losses.mean_and_interval(np.array([1.0, np.inf, 2.0]))  # a warning of NumPy would be an error here
    assert np.isinf(mean)
    assert np.isnan(ci95)


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


@pytest.mark.parametrize("given", [lambda o, t, m: (o - t) ** 2, lambda o, t, m: (m.sum(), {}), lambda o, t, m: None])
def test_a_loss_must_give_a_scalar(given):
    with pytest.raises(ValueError, match=r"loss_fn gives .*; it must give a scalar"):
        jax.eval_shape(losses.objective(given).loss, *labelled())


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_classes_are_known_to_be_absent_by_their_outputs(dtype):
    present = jnp.array([True, False, True])
    outputs = exclude_absent(jnp.array([[-200.0, 0, 100.0], [0, 0, -1e4]], dtype), present)
    np.testing.assert_array_equal(functional.present_in(outputs), present)
    assert (jax.nn.softmax(outputs)[:, 1] == 0).all()
