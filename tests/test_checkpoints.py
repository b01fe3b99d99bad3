"""Checkpoints by themselves; tests/test_fitting.py has those of runs."""

import jax
import optax

import jmeta
from jmeta import checkpoints, data, learners, models

SAMPLE, OPTIMIZER = data.glyphs(ways=2, shots=1, queries=1), optax.adam(1e-3)
LEARNER = learners.protonet(models.mlp(hidden=(4,), outputs=None))


def test_a_state_with_a_number_of_pythons_is_saved_and_restored(tmp_path):
    start = jmeta.init_state(LEARNER, OPTIMIZER, jax.random.key(0), SAMPLE(jax.random.key(1)))
    state = start._replace(step=3)
    checkpoints.save(tmp_path, state)
    assert checkpoints.restore(tmp_path, start).step == 3
