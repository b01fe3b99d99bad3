"""The sinusoid family is the paper's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jmeta import data


@pytest.fixture(scope="module")
def tasks():
    return jax.vmap(data.sinusoid(shots=10, queries=20))(jax.random.split(jax.random.key(0), 500))


def amplitude_and_phase(task):
    """y = a sin(x - p) = c sin x + s cos x, by least squares over support and query."""
    x, y = (np.concatenate([a, b])[:, 0] for a, b in zip(task.support[:2], task.query[:2], strict=True))
    (c, s), residual, *_ = np.linalg.lstsq(np.stack([np.sin(x), np.cos(x)], 1), y)
    assert residual < 1e-8  # the same wave in support and query
    return np.hypot(c, s), np.arctan2(-s, c)


@pytest.fixture(scope="module")
def waves(tasks):
    """The amplitude and the phase of each task, [500, 2]."""
    return np.array([amplitude_and_phase(jax.tree.map(lambda leaf, i=i: leaf[i], tasks)) for i in range(500)])


def test_amplitudes_phases_and_inputs_are_uniform_over_the_papers_ranges(tasks, waves):
    amplitudes, phases = waves.T
    inputs = (np.ravel(part.inputs)[:2000] for part in (tasks.support, tasks.query))
    for values, low, high in ((amplitudes, 0.1, 5), (phases, 0, np.pi), *((x, -5, 5) for x in inputs)):
        assert scipy.stats.kstest(values, scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_amplitude_phase_and_inputs_are_independent(tasks, waves):
    numbers = np.concatenate([waves, tasks.support.inputs[..., 0], tasks.query.inputs[..., 0]], axis=1)
    correlation = np.corrcoef(numbers.T) - np.eye(numbers.shape[1])
    # Of 496 pairs and 500 tasks each: five standard deviations of a correlation that is none.
    assert np.abs(correlation).max() < 5 / np.sqrt(500)


def test_shapes(tasks):
    assert tasks.support.targets.shape == (500, 10, 1)
    assert tasks.query.inputs.shape == (500, 20, 1)
    assert jnp.all(tasks.support.mask == 1)


@pytest.mark.parametrize("name", ["shots", "queries"])
def test_refuses_an_empty_set(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        data.sinusoid(**{name: 0})
