"""Checkpoints by themselves; tests/test_fitting.py has those of runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jmeta
from jmeta import checkpoints, data, learners, models

SAMPLE, OPTIMIZER = data.glyphs(ways=2, shots=1, queries=1), optax.adam(1e-3)
LEARNER = learners.protonet(models.mlp(hidden=(4,), outputs=None))


def test_a_state_with_a_number_of_pythons_is_saved_and_restored(tmp_path):
    start = jmeta.init_state(LEARNER, OPTIMIZER, jax.random.key(0), SAMPLE(jax.random.key(1)))
    state = start._replace(step=3)
    checkpoints.save(tmp_path, state)
    assert checkpoints.restore(tmp_path, start).step == 3


def test_an_array_without_a_number_is_restored_as_it_was(tmp_path):
    start = jmeta.init_state(LEARNER, OPTIMIZER, jax.random.key(0), SAMPLE(jax.random.key(1)))
    start = start._replace(state={"empty": jnp.zeros((0, 3), jnp.int32)})
    checkpoints.save(tmp_path, start)
    found = checkpoints.restore(tmp_path, start).state["empty"]
    assert (found.shape, found.dtype) == ((0, 3), jnp.int32)


def test_what_a_killed_save_has_left_is_removed_by_the_next(tmp_path):
    left = tmp_path / "1.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    assert checkpoints.saved_steps(tmp_path) == []
    assert left.exists()
    checkpoints.save(tmp_path, jmeta.TrainState({"w": jnp.ones(2)}, (), (), jax.random.key(0), jnp.int32(2)))
    assert checkpoints.saved_steps(tmp_path) == [2]
    assert not left.exists()


@pytest.mark.parametrize("step", [1, 2])
def test_a_state_that_is_no_later_than_the_newest_is_not_saved(tmp_path, step):
    state = jmeta.init_state(LEARNER, OPTIMIZER, jax.random.key(0), SAMPLE(jax.random.key(1)))
    checkpoints.save(tmp_path, state._replace(step=2))
    with pytest.raises(
        ValueError, match=f"{tmp_path} already has a checkpoint of step 2; .* later step than that, not {step}"
    ):
        checkpoints.save(tmp_path, state._replace(step=step))
    assert checkpoints.saved_steps(tmp_path) == [2]


def test_a_folder_of_the_users_with_a_number_for_its_name_is_not_deleted(tmp_path):
    state = jmeta.init_state(LEARNER, OPTIMIZER, jax.random.key(0), SAMPLE(jax.random.key(1)))
    for name in ("1/config", "2"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "1" / "mine.txt").touch()
    with pytest.raises(ValueError, match=f"{tmp_path} has a folder 1 that is not a checkpoint; choose another folder"):
        checkpoints.save(tmp_path, state._replace(step=5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    (tmp_path / "1" / "mine.txt").unlink()
    (tmp_path / "1" / "config").rmdir()
    checkpoints.save(tmp_path, state._replace(step=5))  # an empty folder is what a kill leaves of a deleted checkpoint
    (tmp_path / "5" / "of another version of Orbax").touch()
    checkpoints.save(tmp_path, state._replace(step=6))


def test_the_best_checkpoint_outlives_newer_ones_and_can_be_restored(tmp_path):
    start = jmeta.init_state(LEARNER, OPTIMIZER, jax.random.key(0), SAMPLE(jax.random.key(1)))
    for step, score in ((1, 0.3), (2, 0.9), (3, None), (4, np.nan), (5, 0.2)):
        checkpoints.save(tmp_path, start._replace(step=step), score=score)
    assert checkpoints.best_step(tmp_path) == 2
    assert sorted(checkpoints.saved_steps(tmp_path)) == [2, 4, 5]
    assert checkpoints.restore(tmp_path, start, step=2).step == 2
    assert checkpoints.restore(tmp_path, start).step == 5
    with pytest.raises(FileNotFoundError, match=f"no checkpoint of step 3 in {tmp_path}; there are 2, 4, 5"):
        checkpoints.restore(tmp_path, start, step=3)


def test_without_scores_no_checkpoint_is_the_best(tmp_path):
    assert checkpoints.best_step(tmp_path / "none") is None
    start = jmeta.init_state(LEARNER, OPTIMIZER, jax.random.key(0), SAMPLE(jax.random.key(1)))
    checkpoints.save(tmp_path, start)
    assert checkpoints.best_step(tmp_path) is None


def test_an_option_that_is_newer_than_a_checkpoint_and_left_out_is_no_difference(tmp_path):
    state = jmeta.init_state(LEARNER, OPTIMIZER, jax.random.key(0), SAMPLE(jax.random.key(1)))
    checkpoints.save(tmp_path, state, config={"rate": 0.1})
    checkpoints.check_config(tmp_path, {"rate": 0.1, "newer": None})
    with pytest.raises(ValueError, match="of another run: it has no newer, not 3"):
        checkpoints.check_config(tmp_path, {"rate": 0.1, "newer": 3})


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"there is no checkpoint in {tmp_path}"):
        checkpoints.restore_config(tmp_path)
    state = jmeta.init_state(LEARNER, OPTIMIZER, jax.random.key(0), SAMPLE(jax.random.key(1)))
    checkpoints.save(tmp_path / "checkpoints", state)
    with pytest.raises(FileNotFoundError, match=f"those of the run in it are in {tmp_path}/checkpoints"):
        checkpoints.restore(tmp_path, state)
