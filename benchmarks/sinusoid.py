"""MAML on sinusoids at the paper's length: does it stay finite, and how well does it learn?

    python -m benchmarks.sinusoid

Finn et al., 2017, section 5.1: 70,000 meta-steps of 25 tasks of 10 points, inner rate 0.01, once with one
inner step and once with five, each from ten seeds, with the defaults of `make_train_step`. Beside it, what
the policy for tasks that are not finite costs. The results go to benchmarks/results/sinusoid-STEPS.json.
"""

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm import tqdm

import jmeta
from benchmarks.record import provenance, RESULTS, save
from benchmarks.timing import in_turns
from jmeta import data, learners, losses, models
from jmeta.checks import check_counts

BATCH_SIZE, RATE, TEST_STEPS, EPISODES = 25, 0.01, (1, 5, 10), 600
SAMPLE = data.sinusoid(shots=10, queries=10)
OPTIMIZER = optax.adam(1e-3)
TEST_SEED = 2**31  # of no training
LEAST_SECONDS = 0.1  # of a timing


def maml(inner_steps: int) -> jmeta.Learner:
    """The learner of the paper."""
    return learners.maml(
        models.mlp(), inner_optimizer=optax.sgd(RATE), inner_steps=inner_steps, loss_fn=losses.squared_error
    )


def main(
    *,
    inner_steps: tuple[int, ...] = (1, 5),
    meta_steps: int = 70_000,
    seeds: int = 10,
    dispatch: int = 1000,
    out: Path = RESULTS,
) -> None:
    """Trains, tests and saves.

    Args:
        inner_steps: in training, of one series of runs each.
        meta_steps: in each run, a multiple of `dispatch`.
        seeds: runs for each number of inner steps.
        dispatch: meta-steps in a dispatch.
        out: folder of the result.
    """
    check_counts(least=1, meta_steps=meta_steps, seeds=seeds, dispatch=dispatch)
    if meta_steps % dispatch:
        raise ValueError(f"meta_steps is {meta_steps}; it must be a multiple of dispatch, {dispatch}.")
    out.mkdir(parents=True, exist_ok=True)
    made_by = provenance()  # before the first result is written
    for number in inner_steps:
        result = {
            "inner_steps": number,
            "meta_steps": meta_steps,
            **made_by,
            "policy_microseconds": cost_of_policy(number),
            "runs": train(number, meta_steps, seeds, dispatch),
        }
        save(result, out / f"sinusoid-{number}.json")


def train(inner_steps: int, meta_steps: int, seeds: int, dispatch: int) -> list[dict[str, Any]]:
    """The runs of every seed: skipped tasks, whether parameters are finite, errors after 1, 5 and 10 test steps."""
    learner = maml(inner_steps)
    step = jmeta.make_train_step(learner, OPTIMIZER)
    loop = jax.jit(jmeta.make_train_loop(step, SAMPLE, batch_size=BATCH_SIZE, steps=dispatch), donate_argnums=0)
    runs = []
    for seed in range(seeds):
        start, skipped = time.perf_counter(), 0
        state = jmeta.init_state(learner, OPTIMIZER, jax.random.key(seed), SAMPLE(jax.random.key(0)))
        for _ in tqdm(range(meta_steps // dispatch), desc=f"{inner_steps} inner steps, seed {seed}", mininterval=10):
            state, metrics = loop(state)
            skipped += int(metrics["nonfinite_tasks"].sum())
        runs.append(
            {
                "seed": seed,
                "seconds": round(time.perf_counter() - start, 1),
                "skipped_tasks": skipped,
                "finite_parameters": all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.params)),
                "test": {steps: test(state, steps) for steps in TEST_STEPS},
            }
        )
        print(json.dumps(runs[-1]), flush=True)
    return runs


LEARNERS = {steps: maml(steps) for steps in TEST_STEPS}  # one of each, for `evaluate` compiles once for a learner


def test(state: jmeta.TrainState, steps: int) -> dict[str, float]:
    """The mean squared error after so many inner steps, on the same tasks for all runs."""
    report = jmeta.evaluate(LEARNERS[steps], state, SAMPLE, key=jax.random.key(TEST_SEED), episodes=EPISODES)
    return {"loss": round(report.loss, 4), "ci95": round(report.loss_ci95, 4)}


def cost_of_policy(inner_steps: int, repeats: int = 15, steps: int = 500) -> dict[str, float]:
    """Microseconds of a meta-step with the policy and of one without, timed in turns."""
    learner = maml(inner_steps)
    state = jmeta.init_state(learner, OPTIMIZER, jax.random.key(0), SAMPLE(jax.random.key(0)))
    variants = {
        "with": jmeta.make_train_step(learner, OPTIMIZER, tasks_per_chunk=BATCH_SIZE),
        "without": bare_step(learner),
    }
    loops = {
        name: jax.jit(jmeta.make_train_loop(step, SAMPLE, batch_size=BATCH_SIZE, steps=steps))
        for name, step in variants.items()
    }
    calls = {name: functools.partial(_run, loop, state) for name, loop in loops.items()}
    seconds = in_turns(calls, repeats=repeats, least_seconds=LEAST_SECONDS, title="policy")
    found = {name: round(1e6 * float(np.median(values)) / steps, 1) for name, values in seconds.items()}
    print("microseconds of a meta-step:", found, flush=True)
    return found


def bare_step(learner: jmeta.Learner) -> Callable:
    """A meta-step as one writes it by hand: the gradient of the mean loss."""

    def step(train_state, tasks):
        params, state, opt_state, key, number = train_state
        keys = jax.random.split(key, BATCH_SIZE + 1)

        def loss(params):
            values, _ = jax.vmap(lambda task, key: learner.loss(params, state, task, key=key))(tasks, keys[1:])
            return values.mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = OPTIMIZER.update(gradient, opt_state, params)
        metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradient)}
        return jmeta.TrainState(optax.apply_updates(params, updates), state, opt_state, keys[0], number + 1), metrics

    return step


def _run(loop, state):
    return jax.block_until_ready(loop(state))


if __name__ == "__main__":
    tyro.cli(main)
