"""The predictor that the Transformer is compared with is the best there is."""

import jax
import numpy as np
import pytest

from benchmarks import linear_regression
from benchmarks.linear_regression import DIMENSIONS, NOISE


def test_the_optimum_errs_as_much_as_the_uncertainty_of_w_and_the_noise():
    """The variance of a query's target given the support set: noise, and x' C x with C that of w."""
    tasks = jax.vmap(linear_regression.sample)(jax.random.split(jax.random.key(0), 5_000))
    x = np.asarray(tasks.support.inputs)
    covariance = np.linalg.inv(x.mT @ x / NOISE**2 + np.eye(DIMENSIONS))
    expected = NOISE**2 + np.trace(covariance, axis1=1, axis2=2).mean()
    assert linear_regression.optimal_errors(tasks).mean() == pytest.approx(expected, rel=0.05)
