"""How near a Transformer comes to the optimum on linear regression, from examples in its prompt.

    python -m benchmarks.linear_regression

Garg et al., 2022, "What Can Transformers Learn In-Context?": y = w'x + noise, with w and x from standard
normal distributions. No predictor has a smaller mean squared error than ridge regression with the variance
of the noise. Here of fewer dimensions, for a CPU. Part of that error is the noise of the query itself: what
either errs beyond it is saved too. The result goes to benchmarks/results/linear-regression.json.
"""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import jmeta
from benchmarks.record import provenance, RESULTS, save
from jmeta import learners, losses, models

DIMENSIONS, SHOTS, QUERIES, NOISE = 3, 10, 10, 0.5
EPISODES, DISPATCH = 10_000, 250


def sample(key: jax.Array) -> jmeta.Task:
    """One task: its w and its noise, SHOTS examples and QUERIES."""
    weight_key, input_key, noise_key = jax.random.split(key, 3)
    x = jax.random.normal(input_key, (SHOTS + QUERIES, DIMENSIONS))
    noise = NOISE * jax.random.normal(noise_key, (len(x), 1))
    y = x @ jax.random.normal(weight_key, (DIMENSIONS, 1)) + noise
    ones = jnp.ones(len(x))
    return jmeta.Task(
        jmeta.Examples(x[:SHOTS], y[:SHOTS], ones[:SHOTS]), jmeta.Examples(x[SHOTS:], y[SHOTS:], ones[SHOTS:])
    )


def main(
    *, meta_steps: int = 20_000, batch_size: int = 64, rate: float = 1e-3, seed: int = 0, out: Path = RESULTS
) -> None:
    """Trains, tests both on the same tasks, and saves.

    Args:
        meta_steps: of training.
        batch_size: tasks in each.
        rate: of Adam; it falls to zero along a cosine.
        seed: of the initial parameters and of all tasks, those of the test too.
        out: folder of the result.
    """
    if meta_steps < 1 or meta_steps % DISPATCH:
        raise ValueError(f"meta_steps is {meta_steps}; it must be a multiple of {DISPATCH}, 1 or more times.")
    made_by = provenance()
    learner = learners.in_context(models.mlp(hidden=(), outputs=None), loss_fn=losses.squared_error)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, meta_steps))
    state = jmeta.init_state(learner, optimizer, jax.random.key(seed), sample(jax.random.key(0)))
    step = jmeta.make_train_step(learner, optimizer)
    loop = jax.jit(jmeta.make_train_loop(step, sample, batch_size=batch_size, steps=DISPATCH), donate_argnums=0)
    start = time.process_time()
    for _ in range(meta_steps // DISPATCH):
        state, metrics = loop(state)
        print(f"{int(state.step):7} steps: loss {metrics['loss'].mean():.3f}", flush=True)
    training = {"meta_steps": int(state.step), "processor_seconds": round(time.process_time() - start, 1)}

    tasks = jax.vmap(sample)(jax.random.split(jax.random.key(seed + 1), EPISODES))
    errors = {"in_context": in_context_errors(learner, state, tasks), "optimum": optimal_errors(tasks)}
    result = training | {
        "dimensions": DIMENSIONS,
        "shots": SHOTS,
        "queries": QUERIES,
        "noise": NOISE,
        "batch_size": batch_size,
        "outer_rate": rate,
        "seed": seed,
        "episodes": EPISODES,
        **made_by,
        "errors": {name: round(float(values.mean()), 4) for name, values in errors.items()},
        "ratio": round(float(ratio(errors, 0.0)), 4),
        "ratio_beyond_noise": round(float(ratio(errors, NOISE**2)), 4),
    }
    print(result["errors"], result["ratio"])
    out.mkdir(parents=True, exist_ok=True)
    save(result, out / "linear-regression.json")


def ratio(errors: dict[str, np.ndarray], noise: float) -> float:
    """The learner's mean error over the optimum's, both without the noise."""
    return (errors["in_context"].mean() - noise) / (errors["optimum"].mean() - noise)


def in_context_errors(learner: jmeta.Learner, state: jmeta.TrainState, tasks: Any) -> np.ndarray:
    """The squared error of each query of tasks, by the learner."""

    def outputs(task):
        adapted = learner.adapt(state.params, state.state, task.support)
        return learner.predict(state.params, state.state, adapted, task.query.inputs)

    found = jax.jit(lambda tasks: jax.lax.map(outputs, tasks, batch_size=500))(tasks)
    return np.square(found - tasks.query.targets)


def optimal_errors(tasks: Any) -> np.ndarray:
    """The same by ridge regression, the mean of w given the support set, in NumPy."""
    queries, targets = (np.asarray(leaf, np.float64) for leaf in tasks.query[:2])
    return np.square(optimal_outputs(tasks.support, queries) - targets)


def optimal_outputs(support: jmeta.Examples, queries: np.ndarray) -> np.ndarray:
    """The mean of the targets of queries given the support sets, of a batch of tasks."""
    x, y = (np.asarray(leaf, np.float64) for leaf in support[:2])
    gram = x.mT @ x + NOISE**2 * np.eye(DIMENSIONS)
    return queries @ np.linalg.solve(gram, x.mT @ y)


if __name__ == "__main__":
    tyro.cli(main)
