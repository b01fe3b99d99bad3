"""Runs: in one or in parts, what they leave in their folder, and how they stop."""

import contextlib
import functools
import gc
import io
import os
import re
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jmeta
from jmeta import checkpoints, data, fitting, learners, losses, models
from jmeta.files import sole_writer
from jmeta.metrics import MetricsLog, read_metrics

SAMPLE = data.sinusoid(shots=5, queries=5)
OPTIMIZER = optax.adam(1e-3)
LEARNER = learners.maml(models.mlp(hidden=(8,)), inner_optimizer=optax.sgd(0.01), loss_fn=losses.squared_error)


def fitted(out=None, steps=60, sample=SAMPLE, **options):
    options = {"batch_size": 2, "log_every": 10, "save_every": 20, "validation": SAMPLE, "episodes": 10} | options
    return jmeta.fit(LEARNER, OPTIMIZER, sample, key=jax.random.key(0), steps=steps, out=out, **options)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_second_run_of_the_same_functions_compiles_nothing_whatever_its_number_of_steps():
    traces = []

    def update(*arguments):
        traces.append(1)
        return OPTIMIZER.update(*arguments)

    def run(sample, steps=2, **options):
        jmeta.fit(LEARNER, counted, sample, key=jax.random.key(0), steps=steps, batch_size=2, **options)
        return len(traces)

    counted = OPTIMIZER._replace(update=update)
    assert 0 < (once := run(SAMPLE)) == run(SAMPLE) == run(SAMPLE, steps=13) == run(SAMPLE, steps=np.int64(13))
    assert run(data.sinusoid(shots=5, queries=5)) == once
    assert run(SAMPLE, nonfinite="raise") > once


def test_runs_and_evaluations_leave_no_arrays_behind():
    def run():
        state = fitted()
        jmeta.evaluate(LEARNER, state, SAMPLE, key=jax.random.key(1), episodes=10)
        del state
        gc.collect()
        return len(jax.live_arrays())

    assert run() == run()


def test_a_run_that_never_logs_before_its_end_has_no_room_for_more_metrics_than_it_takes():
    state = jmeta.fit(
        LEARNER, OPTIMIZER, SAMPLE, key=jax.random.key(0), steps=2, batch_size=2, log_every=10**10, save_every=10**10
    )
    assert state.step == 2


def test_a_learner_without_parameters_is_trained_all_the_same():
    sample = data.glyphs(ways=2, shots=1, queries=1)
    learner = learners.protonet(models.mlp(hidden=(), outputs=None))
    state = jmeta.fit(learner, OPTIMIZER, sample, key=jax.random.key(0), steps=2, batch_size=2)
    assert state.step == 2


@pytest.mark.parametrize("config", ["maml", {"rate": np.float32(0.1)}, {"rate": float("nan")}])
def test_a_config_that_json_cannot_say_is_refused_before_anything_is_trained(config, tmp_path):
    with pytest.raises(ValueError, match=r"config is .*; it must be"):
        jmeta.fit(LEARNER, OPTIMIZER, SAMPLE, key=jax.random.key(0), steps=2, batch_size=2, out=tmp_path, config=config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", ["\0\0", "3", "[]"])
def test_a_damaged_line_of_metrics_is_told_by_its_number_and_file(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=rf"line 2 of {tmp_path}/metrics.jsonl is damaged"):
        jmeta.fit(LEARNER, OPTIMIZER, SAMPLE, key=jax.random.key(0), steps=2, batch_size=2, out=tmp_path)


def sometimes_bad(key):
    """One task in twenty has no finite loss."""
    task = SAMPLE(key)
    factor = jnp.where(jax.random.bernoulli(key, 0.05), jnp.nan, 1.0)
    return task._replace(query=task.query._replace(targets=task.query.targets * factor))


def test_a_run_goes_on_past_single_tasks_and_counts_them(tmp_path):
    with pytest.warns(UserWarning, match=r"\d of the last 20 tasks before meta-step \d+ was over") as warned:
        state = jmeta.fit(
            LEARNER, OPTIMIZER, sometimes_bad, key=jax.random.key(0), steps=60, batch_size=2, out=tmp_path
        )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    counted = [line["nonfinite_tasks"] for line in read_metrics(tmp_path)]
    assert 0 < sum(counted) < 24
    assert len(warned) == 1  # of the first, to who called
    assert warned[0].filename == __file__
    assert all(np.isfinite(line["loss"]) for line in read_metrics(tmp_path))


@pytest.mark.filterwarnings("ignore:.* were left out")
@pytest.mark.parametrize(("log_every", "steps"), [(1, 20), (10, 20), (10, 5)])
def test_a_run_ends_after_ten_steps_without_a_finite_task_however_often_it_logs(tmp_path, log_every, steps):
    seen, options = [], {"batch_size": 1, "log_every": log_every, "save_every": log_every, "validation": None}
    with pytest.raises(FloatingPointError, match=r"1 of 1 tasks are not finite at meta-step 1; no checkpoint"):
        fitted(tmp_path, steps, poisoned, on_log=lambda step, _: seen.append(step), **options)
    assert seen == list(range(1, 10)) * (log_every == 1)
    assert checkpoints.latest_step(tmp_path / "checkpoints") is None  # none would be of a new state


@pytest.mark.parametrize("devices", [None, jax.devices()])
def test_a_run_told_to_raise_stops_at_the_first_one_with_the_state_before_it(tmp_path, devices):
    options = {"key": jax.random.key(0), "batch_size": 2, "log_every": 10, "nonfinite": "raise", "devices": devices}
    skipping = {**options, "log_every": 1, "nonfinite": "skip"}
    with pytest.raises(FloatingPointError, match=r"[12] of 2 tasks are not finite at meta-step") as error:
        jmeta.fit(LEARNER, OPTIMIZER, sometimes_bad, steps=60, out=tmp_path / "raised", **options)
    step = checkpoints.latest_step(tmp_path / "raised" / "checkpoints")
    with pytest.warns(UserWarning, match="were left out"):
        jmeta.fit(LEARNER, OPTIMIZER, sometimes_bad, steps=60, out=tmp_path / "skipped", **skipping)
    bad = [line["step"] for line in read_metrics(tmp_path / "skipped") if line["nonfinite_tasks"]]
    assert step == bad[0] - 1
    assert f"meta-step {step + 1}; the last good checkpoint is" in str(error.value)
    expected = jmeta.fit(LEARNER, OPTIMIZER, sometimes_bad, steps=step, **options)
    restored = checkpoints.restore(tmp_path / "raised" / "checkpoints", expected)
    assert_same(restored.params, expected.params)
    assert_same(jax.random.key_data(restored.key), jax.random.key_data(expected.key))  # it meets the same tasks again


def test_a_run_in_two_parts_is_the_run_in_one_bit_for_bit(tmp_path):
    fitted(tmp_path / "parts", steps=20)
    parts, whole = fitted(tmp_path / "parts"), fitted(tmp_path / "whole")
    assert_same(parts.params, whole.params)
    assert_same(jax.random.key_data(parts.key), jax.random.key_data(whole.key))
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")


def test_a_run_on_several_devices_is_resumed_bit_for_bit_and_is_that_of_one_to_rounding(x64, tmp_path):
    divided = functools.partial(fitted, devices=jax.devices())
    divided(tmp_path, steps=20)
    resumed, whole, alone = divided(tmp_path), divided(), fitted()
    assert_same(resumed.params, whole.params)
    assert divided(tmp_path).step.devices() == resumed.step.devices() == set(jax.devices())
    chex.assert_trees_all_close(alone.params, whole.params, rtol=1e-10)
    assert fitted(tmp_path, steps=80).step == 80  # and goes on with one


def test_a_batch_of_one_task_is_one_devices_and_its_validation_all_devices(monkeypatch):
    used = []

    def noting(*args, devices, **options):
        used.append(tuple(devices))
        return jmeta.evaluate(*args, devices=devices, **options)

    monkeypatch.setattr(fitting, "evaluate", noting)
    state = fitted(steps=20, batch_size=1, devices=jax.devices())
    assert used == [tuple(jax.devices())]
    monkeypatch.undo()
    alone = fitted(steps=20, batch_size=1)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), state.params, alone.params)
    assert state.step.devices() == set(jax.devices()[:1])


def test_a_run_takes_its_tasks_in_chunks_and_bounds_their_gradients_as_one_asks(monkeypatch):
    given, make = [], fitting.make_train_step
    monkeypatch.setattr(
        fitting, "make_train_step", lambda *args, **kwargs: given.append(kwargs) or make(*args, **kwargs)
    )
    options = {"key": jax.random.key(0), "batch_size": 2, "tasks_per_chunk": 1, "max_task_norm": 1e-3}
    start, after = (jmeta.fit(LEARNER, optax.sgd(1.0), SAMPLE, steps=steps, **options).params for steps in (0, 1))
    assert {kwargs["tasks_per_chunk"] for kwargs in given} == {1}
    assert 0 < optax.tree.norm(optax.tree.sub(after, start)) < 1.001e-3


def test_metrics_are_written_as_lines_and_for_tensorboard(tmp_path):
    fitted(tmp_path)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert {"loss", "gradient_norm"} <= lines[0].keys()
    assert [line["step"] for line in lines if "validation_loss" in line] == [20, 40, 60]
    assert all("validation_loss_ci95" in line for line in lines if "validation_loss" in line)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert all(name.encode() in events.read_bytes() for name in lines[-1].keys() - {"step"})


def test_a_line_cut_short_by_a_kill_is_written_again(tmp_path):
    fitted(tmp_path, steps=20)
    whole = read_metrics(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "loss": 1}\n{"step": 40, "lo')
    fitted(tmp_path, steps=20)
    assert read_metrics(tmp_path) == whole


@contextlib.contextmanager
def handled_by(handler, number):
    """Whatever a signal does where the tests run; jobs in the background ignore SIGINT."""
    before = signal.signal(number, handler)
    try:
        yield
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_a_checkpoint(tmp_path, number):
    def interrupt():
        while len(read_metrics(tmp_path)) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt, daemon=True)  # not waited for if the run fails before that
    thread.start()
    told = rf"{signal.Signals(number).name} ended the run at meta-step \d+ of 10000000; .* goes on from {tmp_path}"
    with handled_by(signal.default_int_handler, number), pytest.warns(UserWarning, match=told):
        state = fitted(tmp_path, steps=10**7, save_every=10**6, validation=None)
    thread.join()
    assert 0 < state.step < 10**7
    assert checkpoints.latest_step(tmp_path / "checkpoints") == state.step


def test_a_signal_does_not_wait_for_a_validation_but_for_the_checkpoint(tmp_path, monkeypatch):
    def signalled(*args, begun, **options):
        ran = dispatch(*args, begun=begun, **options)
        if begun == 30:
            os.kill(os.getpid(), signal.SIGINT)
        return ran

    dispatch = fitting._dispatch
    monkeypatch.setattr(fitting, "_dispatch", signalled)
    told = "SIGINT ended the run at meta-step 40 of 60"
    with handled_by(signal.default_int_handler, signal.SIGINT), pytest.warns(UserWarning, match=told):
        fitted(tmp_path, steps=60, save_every=20)
    assert [line["step"] for line in read_metrics(tmp_path) if "validation_loss" in line] == [20]
    assert checkpoints.latest_step(tmp_path / "checkpoints") == 40


def test_a_signal_in_the_last_dispatch_is_told_too():
    told = "SIGINT came in the last dispatch of the run, which is complete"
    with handled_by(signal.default_int_handler, signal.SIGINT), pytest.warns(UserWarning, match=told):
        state = fitted(steps=10, on_log=lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert state.step == 10


def test_a_signal_that_is_ignored_stays_so():
    with handled_by(signal.SIG_IGN, signal.SIGINT):
        state = fitted(steps=20, on_log=lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert state.step == 20


def test_each_line_of_metrics_is_given_to_a_function_too_to_do_with_as_it_likes(tmp_path):
    lines = []

    def note(step, values):
        values.update(step=step, note="mine")
        lines.append(values)

    fitted(tmp_path, steps=30, on_log=note)
    assert [{**line, "note": "mine"} for line in read_metrics(tmp_path)] == lines


def test_the_checkpoint_of_the_highest_validation_accuracy_is_the_best(tmp_path):
    sample = data.glyphs(ways=3, shots=1, queries=2)
    learner = learners.protonet(models.mlp(hidden=(4,), outputs=None))
    schedule = {"steps": 5, "log_every": 1, "save_every": 1, "batch_size": 1, "out": tmp_path}
    jmeta.fit(learner, optax.adam(0.1), sample, key=jax.random.key(0), validation=sample, episodes=20, **schedule)
    accuracies = {line["step"]: line["validation_accuracy"] for line in read_metrics(tmp_path)}
    best = max(accuracies, key=lambda step: (accuracies[step], step))
    assert checkpoints.best_step(tmp_path / "checkpoints") == best


def test_a_last_state_without_a_finite_task_keeps_the_score_of_its_validation(tmp_path):
    fitted(tmp_path, steps=10, validation=None)
    with pytest.warns(UserWarning, match="were left out"):
        fitted(tmp_path, steps=11, sample=poisoned)
    assert checkpoints.best_step(tmp_path / "checkpoints") == 11


def test_a_validation_that_diverges_makes_no_checkpoint_the_best(tmp_path):
    with pytest.warns(UserWarning, match="were left out"):
        fitted(tmp_path, steps=20, sample=sometimes_bad, validation=poisoned)
    assert checkpoints.latest_step(tmp_path / "checkpoints") == 20
    assert checkpoints.best_step(tmp_path / "checkpoints") is None


def test_a_metric_that_is_never_a_number_is_written_as_such_and_warns_of_nothing(tmp_path):
    def loss(*arguments, **options):
        value, (state, metrics) = LEARNER.loss(*arguments, **options)
        return value, (state, metrics | {"unknown": jnp.nan})

    learner = LEARNER._replace(loss=loss)
    jmeta.fit(learner, OPTIMIZER, SAMPLE, key=jax.random.key(0), steps=2, batch_size=2, out=tmp_path)
    assert all(np.isnan(line["unknown"]) and np.isfinite(line["loss"]) for line in read_metrics(tmp_path))


def test_a_validation_may_be_given_with_a_key_that_lies_on_one_of_the_devices():
    table = data.class_table(np.arange(24.0).reshape(12, 2), np.repeat([0, 1, 2], 4))
    sample = data.episodes(table, ways=2, shots=1, queries=1)
    learner = learners.protonet(models.mlp(hidden=(4,), outputs=None))
    key = jax.device_put(jax.random.key(0), jax.devices()[0])
    options = {"validation": sample, "episodes": 2, "devices": jax.devices()}
    assert jmeta.fit(learner, OPTIMIZER, sample, key=key, steps=1, batch_size=2, **options).step == 1


@pytest.mark.parametrize("options", [{"sample": None}, {"validation": 3}])
def test_what_is_no_sampler_is_refused(options):
    ((name, value),) = options.items()
    arguments = {"sample": SAMPLE, "key": jax.random.key(0), "steps": 1, "batch_size": 1} | options
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be a function from a key to a Task"):
        jmeta.fit(LEARNER, OPTIMIZER, **arguments)


@pytest.mark.parametrize("sample", [data.sinusoid, lambda key, ways: None, lambda: None])
def test_a_function_of_more_than_a_key_or_of_nothing_is_no_sampler(sample):
    with pytest.raises(ValueError, match=r"the sampler is \S+\(.*\).*; it must be a function from a key alone"):
        jmeta.fit(LEARNER, OPTIMIZER, sample, key=jax.random.key(0), steps=1, batch_size=1)


def poisoned(key):
    task = SAMPLE(key)
    return task._replace(query=task.query._replace(targets=task.query.targets * jnp.nan))


def test_a_loss_that_turns_nan_stops_with_the_step_and_the_last_good_checkpoint(tmp_path):
    fitted(tmp_path, steps=40)
    options = {"key": jax.random.key(0), "batch_size": 2, "out": tmp_path, "save_every": 20}
    good, last = (tmp_path / "checkpoints" / str(step) for step in (20, 40))
    told = f"meta-step 41; the last good checkpoint is {good}: no finite meta-step has followed {last}"
    with pytest.raises(FloatingPointError, match=told):
        jmeta.fit(LEARNER, OPTIMIZER, poisoned, steps=60, **options)
    assert checkpoints.latest_step(tmp_path / "checkpoints") == 40


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
@pytest.mark.parametrize("log_every", [1, 10])
def test_parameters_that_turn_infinite_are_not_saved(tmp_path, nonfinite, log_every):
    options = {"batch_size": 2, "log_every": log_every, "save_every": log_every, "nonfinite": nonfinite}
    # Of a dispatch of ten the first step is finite, and only those that follow show what it left.
    step = 2 if nonfinite == "skip" and log_every == 10 else 1
    with pytest.raises(FloatingPointError, match=rf"meta-step {step}; no checkpoint is known to be good\."):
        jmeta.fit(LEARNER, optax.sgd(np.inf), SAMPLE, key=jax.random.key(0), steps=20, out=tmp_path, **options)
    assert checkpoints.latest_step(tmp_path / "checkpoints") is None


def test_the_state_before_a_step_that_ruins_the_parameters_is_saved(tmp_path):
    optimizer = optax.sgd(lambda count: jnp.where(count == 4, jnp.inf, 1e-3))
    options = {"key": jax.random.key(0), "batch_size": 2, "log_every": 10, "nonfinite": "raise"}
    with pytest.raises(FloatingPointError, match=rf"meta-step 5; the last good checkpoint is {tmp_path}/checkpoints/4"):
        jmeta.fit(LEARNER, optimizer, SAMPLE, steps=20, out=tmp_path, **options)
    state = checkpoints.restore(tmp_path / "checkpoints", jmeta.fit(LEARNER, optimizer, SAMPLE, steps=0, **options))
    assert state.step == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_a_parameter_that_a_step_ruined_is_told_and_not_the_tasks_that_were_left_out():
    ruin = optax.stateless(lambda updates, params: jax.tree.map(lambda leaf: leaf * jnp.inf, updates))
    optimizer = optax.conditionally_transform(ruin, lambda step: step >= 9)
    options = {"key": jax.random.key(0), "steps": 20, "batch_size": 4}
    told = pytest.raises(FloatingPointError, match="a parameter or running statistic is not finite at meta-step 10")
    with told, warnings.catch_warnings(action="ignore"):
        jmeta.fit(LEARNER, optax.chain(optax.sgd(1e-3), optimizer), sometimes_bad, **options)


def test_a_sampler_whose_wrapper_gives_it_arguments_is_one():
    def with_shots(function):
        @functools.wraps(function)
        def wrapped(key):
            return function(key, 5)

        return wrapped

    @with_shots
    def sample(key, shots):
        return data.sinusoid(shots=shots)(key)

    assert jmeta.fit(LEARNER, OPTIMIZER, sample, key=jax.random.key(0), steps=1, batch_size=1).step == 1


@pytest.mark.filterwarnings("ignore:.* were left out")
@pytest.mark.parametrize("save_every", [1, 10])
def test_a_checkpoint_that_no_finite_step_has_followed_is_not_called_good(tmp_path, save_every):
    options = {"key": jax.random.key(0), "batch_size": 2, "log_every": save_every, "save_every": save_every}
    told = rf"meta-step 2; no checkpoint is known to be good: .* has followed {tmp_path}/checkpoints/{save_every}"
    with pytest.raises(FloatingPointError, match=told):  # the first step ruins finite parameters
        jmeta.fit(LEARNER, optax.sgd(1e30), SAMPLE, steps=40, out=tmp_path, **options)


@pytest.mark.parametrize("tasks_per_chunk", [None, 1])
def test_a_validation_of_other_ways_is_refused_before_anything_is_trained(tmp_path, tasks_per_chunk):
    learner = learners.maml(models.mlp(hidden=(8,), outputs=5))
    tasks, validation = (data.glyphs(ways=ways, shots=1, queries=1) for ways in (5, 3))
    with pytest.raises(ValueError, match=r"outputs have shape \(3, 5\)"):
        jmeta.fit(
            learner,
            OPTIMIZER,
            tasks,
            key=jax.random.key(0),
            steps=20,
            batch_size=2,
            validation=validation,
            tasks_per_chunk=tasks_per_chunk,
            out=tmp_path,
        )
    assert not list(tmp_path.iterdir())


def test_a_run_whose_validation_fails_keeps_what_it_has_trained(tmp_path, monkeypatch):
    def fails(*args, tasks_per_chunk, episodes, **kwargs):
        assert (tasks_per_chunk, episodes) == (1, 10)
        raise MemoryError

    monkeypatch.setattr(fitting, "evaluate", fails)
    with pytest.raises(MemoryError):
        fitted(tmp_path, steps=40, tasks_per_chunk=1)
    assert checkpoints.latest_step(tmp_path / "checkpoints") == read_metrics(tmp_path)[-1]["step"] == 20


def test_a_run_whose_metrics_cannot_be_written_keeps_what_it_has_trained(tmp_path, monkeypatch):
    def fails(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MetricsLog, "write", fails)
    with pytest.raises(OSError, match="No space left"):
        fitted(tmp_path, steps=20, log_every=20)
    assert checkpoints.latest_step(tmp_path / "checkpoints") == 20


def test_a_run_of_no_steps_has_a_checkpoint_too(tmp_path):
    assert_same(fitted(tmp_path, steps=0).params, fitted(tmp_path, steps=0).params)
    assert checkpoints.latest_step(tmp_path / "checkpoints") == 0


def test_two_runs_in_one_folder_at_once_are_refused(tmp_path):
    told = pytest.raises(ValueError, match=f"another run trains in {tmp_path}")
    with ThreadPoolExecutor(1) as other, sole_writer(tmp_path), told:
        other.submit(fitted, tmp_path).result()
    fitted(tmp_path, steps=20)


@pytest.mark.parametrize("name", ["a key of the user's", "one array twice"])
def test_an_optimizer_may_keep_what_is_not_its_own(tmp_path, name):
    key = jax.random.key(7)
    optimizer = {
        "a key of the user's": optax.chain(optax.add_noise(0.01, 0.5, key), optax.sgd(1e-3)),
        "one array twice": optax.contrib.prodigy(),
    }[name]
    run = functools.partial(jmeta.fit, LEARNER, optimizer, SAMPLE, key=jax.random.key(0), batch_size=2, save_every=20)
    run(steps=20, out=tmp_path)
    assert_same(run(steps=40, out=tmp_path).params, run(steps=40).params)
    assert jax.random.split(key).shape == (2,)


def test_metrics_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"mine": 1}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl has lines without a step, so no run has written it"):
        fitted(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"mine": 1}\n'


def test_a_run_of_fewer_steps_than_the_folder_has_taken_is_refused(tmp_path):
    fitted(tmp_path, steps=20)
    with pytest.raises(
        ValueError, match=rf"steps is 10, but the run in {tmp_path} has already taken 20; it must be at least 20"
    ):
        fitted(tmp_path, steps=10)


def test_another_run_in_the_folder_is_refused(tmp_path):
    fitted(tmp_path, steps=20, config={"seed": 0})
    with pytest.raises(ValueError, match="are of another run: its seed is 0, not 1"):
        fitted(tmp_path, config={"seed": 1})


def test_what_a_run_was_told_at_first_is_kept_when_it_goes_on_without(tmp_path):
    fitted(tmp_path, steps=20, config={"seed": 0})
    fitted(tmp_path, steps=40)
    assert checkpoints.restore_config(tmp_path / "checkpoints")["seed"] == 0
    with pytest.raises(ValueError, match="are of another run: it has no width, not 3"):
        fitted(tmp_path, config={"width": 3})


def test_another_key_in_the_folder_is_refused(tmp_path):
    fitted(tmp_path, steps=20)
    with pytest.raises(ValueError, match="are of another run: its key is"):
        jmeta.fit(LEARNER, OPTIMIZER, SAMPLE, key=jax.random.key(1), steps=40, batch_size=2, out=tmp_path)


def test_a_config_with_another_batch_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="config says that batch_size is 3, but fit was given 2"):
        fitted(out=tmp_path, config={"batch_size": 3})
    assert not list(tmp_path.iterdir())


def test_a_config_of_tuples_is_its_own_after_json(tmp_path):
    fitted(tmp_path, steps=20, config={"hidden": (8,)})
    assert fitted(tmp_path, steps=40, config={"hidden": (8,)}).step == 40


def test_a_run_made_longer_from_an_odd_step_is_saved_and_validated_on_time(tmp_path):
    fitted(tmp_path, steps=25)
    fitted(tmp_path, steps=65)
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 20, 25, 30, 40, 50, 60, 65]
    assert [line["step"] for line in read_metrics(tmp_path) if "validation_loss" in line] == [20, 25, 40, 60, 65]


def test_a_raw_key_is_resumed_like_a_typed_one(tmp_path):
    def run(key, steps):
        return jmeta.fit(LEARNER, OPTIMIZER, SAMPLE, key=key, steps=steps, batch_size=2, out=tmp_path)

    run(jax.random.PRNGKey(0), 10)
    assert run(jax.random.key(0), 20).step == 20


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(8)(x))
        return nn.Dense(1)(x)


class NNXDropped(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.out = nnx.Linear(1, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(self.norm(self.hidden(x))))


@pytest.mark.parametrize("model", [models.from_linen(Dropped()), models.from_nnx(NNXDropped)])
def test_a_model_with_random_streams_is_trained_saved_and_resumed(tmp_path, model):
    subject = learners.maml(model, inner_optimizer=optax.sgd(0.01), loss_fn=losses.squared_error)
    for steps in (2, 4):
        state = jmeta.fit(
            subject,
            OPTIMIZER,
            SAMPLE,
            key=jax.random.key(0),
            steps=steps,
            batch_size=2,
            out=tmp_path,
            validation=SAMPLE,
        )
    assert state.step == 4


def test_where_there_is_no_terminal_validations_are_printed_and_nothing_else(capsys):
    fitted(steps=30)
    out, err = capsys.readouterr()
    line = r"step {}: validation mean squared error \S+ ± \S+ \(95 % CI, 10 episodes\)\n"
    assert re.fullmatch(line.format(20) + line.format(30), out)
    assert err == ""
    fitted(steps=20, on_log=lambda *_: None)  # which tells what there is to tell
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [OSError, UnicodeError, ValueError])  # a full disk, no ±, a closed file
def test_output_that_cannot_be_written_does_not_end_a_run(monkeypatch, error):
    tried = []

    class Output(io.StringIO):
        def write(self, text):
            tried.append(text)
            raise error

    monkeypatch.setattr("sys.stdout", Output())
    assert fitted(steps=20).step == 20
    assert tried


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps is -1"),
        ({"save_every": 15}, "save_every is 15; it must be a multiple of log_every, 10"),
        ({"log_every": 0}, "log_every is 0"),
        ({"on_log": 3}, "on_log is 3; it must be a function of a meta-step and its metrics"),
        ({"tasks_per_chunk": 0}, "tasks_per_chunk is 0"),
        ({"batch_size": 2.0}, "batch_size is 2.0; it must be a whole number"),
        ({"episodes": 1}, "episodes is 1"),
        ({"nonfinite": "ignore"}, "nonfinite is 'ignore'"),
        ({"max_task_norm": 0.0}, "max_task_norm is 0.0"),
        ({"devices": []}, r"devices is \[\]; it must be a sequence of different devices"),
        ({"devices": 2}, "devices is 2; it must be a sequence"),
        ({"devices": 2 * jax.devices()[:1]}, r"Cpu.*; it must be a sequence of different"),
    ],
)
def test_refuses_a_schedule_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        fitted(**options)
