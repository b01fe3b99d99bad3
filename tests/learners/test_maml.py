"""MAML learns to learn."""

import jax
import optax

import jmeta
from jmeta import data, learners, losses, models


def test_meta_training_lowers_the_error_after_adaptation():
    learner = learners.maml(models.mlp(), inner_optimizer=optax.sgd(0.01), loss_fn=losses.squared_error)
    sample = data.sinusoid()
    state = jmeta.fit(learner, optax.adam(1e-3), sample, key=jax.random.key(0), steps=0, batch_size=25)
    before = jmeta.evaluate(learner, state, sample, key=jax.random.key(1))
    state = jmeta.fit(
        learner, optax.adam(1e-3), sample, key=jax.random.key(0), steps=2000, batch_size=25, log_every=500
    )
    after = jmeta.evaluate(learner, state, sample, key=jax.random.key(1))
    assert after.loss + after.loss_ci95 < 0.5 * before.loss
