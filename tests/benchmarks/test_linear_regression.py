"""The predictor that the Transformer is compared with is the best there is; and that they are compared."""

import json

import jax
import numpy as np
import pytest

from benchmarks import linear_regression
from benchmarks.linear_regression import NOISE, optimal_outputs, sample


def test_the_optimum_is_the_mean_of_the_targets_given_the_support_set():
    """As that of a Gaussian process: by the covariances of targets, not by w."""
    tasks = jax.vmap(sample)(jax.random.split(jax.random.key(0), 20))
    x, y, q = (np.asarray(leaf, np.float64) for leaf in (*tasks.support[:2], tasks.query.inputs))
    covariance = x @ x.mT + NOISE**2 * np.eye(x.shape[1])
    np.testing.assert_allclose(optimal_outputs(tasks.support, q), q @ x.mT @ np.linalg.solve(covariance, y), atol=1e-9)


def test_a_transformer_hardly_trained_errs_more_than_the_optimum(tmp_path, monkeypatch):
    monkeypatch.setattr(linear_regression, "DISPATCH", 2)
    monkeypatch.setattr(linear_regression, "EPISODES", 100)
    linear_regression.main(meta_steps=4, batch_size=2, out=tmp_path)
    result = json.loads((tmp_path / "linear-regression.json").read_text())
    assert result["meta_steps"] == 4
    assert result["errors"]["in_context"] / result["errors"]["optimum"] == pytest.approx(result["ratio"], rel=1e-2)
    assert result["ratio_beyond_noise"] > result["ratio"] > 1


def test_meta_steps_that_are_no_whole_dispatches_are_refused(tmp_path):
    with pytest.raises(ValueError, match="meta_steps is 100; it must be a multiple of 250"):
        linear_regression.main(meta_steps=100, out=tmp_path)
