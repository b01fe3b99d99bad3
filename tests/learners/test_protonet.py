"""Prototypical networks against their definition in NumPy."""

import jax
import numpy as np
import pytest

from jmeta import data, learners
from jmeta.types import Model

IDENTITY = Model(lambda key, inputs: ({}, ()), lambda params, state, inputs, *, train=False, key=None: (inputs, state))


def test_with_the_identity_for_an_encoder_it_is_nearest_centroid(x64):
    inputs = np.random.default_rng(0).normal(size=(20, 4))
    table = data.class_table(inputs, np.repeat(np.arange(4), 5))
    task = data.episodes(table, ways=3, shots=2, queries=3)(jax.random.key(0))
    learner = learners.protonet(IDENTITY)
    outputs = learner.predict({}, (), learner.adapt({}, (), task.support), task.query.inputs)
    centroids = np.asarray(task.support.inputs).reshape(3, 2, 4).mean(1)
    distances = ((np.asarray(task.query.inputs)[:, None] - centroids[None]) ** 2).sum(-1)
    np.testing.assert_allclose(outputs, -distances, atol=1e-13)


def test_refuses_an_unknown_distance():
    with pytest.raises(ValueError, match="distance is 'manhattan'"):
        learners.protonet(IDENTITY, distance="manhattan")
