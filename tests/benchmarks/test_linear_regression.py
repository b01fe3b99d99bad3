"""The predictor that the Transformer is compared with is the best there is."""

import jax
import numpy as np

from benchmarks.linear_regression import NOISE, optimal_outputs, sample


def test_the_optimum_is_the_mean_of_the_targets_given_the_support_set():
    """As that of a Gaussian process: by the covariances of targets, not by w."""
    tasks = jax.vmap(sample)(jax.random.split(jax.random.key(0), 20))
    x, y, q = (np.asarray(leaf, np.float64) for leaf in (*tasks.support[:2], tasks.query.inputs))
    covariance = x @ x.mT + NOISE**2 * np.eye(x.shape[1])
    np.testing.assert_allclose(optimal_outputs(tasks.support, q), q @ x.mT @ np.linalg.solve(covariance, y), atol=1e-9)
