"""What jmeta is fast for, as ratios within one process, which depend little on the machine.

They hold for optimised code on a machine that does nothing else, so that `make test`, which leaves most of XLA's
optimisations out, and runs on several workers pass them over; `make ratios` runs them, `.ci/run` on the newest JAX.
"""

import functools
import os

import jax
import numpy as np
import pytest

from benchmarks import peers, peers_jmeta
from benchmarks.timing import in_turns
from benchmarks.workloads import OMNIGLOT, tasks_of

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif("JAX_DISABLE_MOST_OPTIMIZATIONS" in os.environ, reason="optimisations are left out"),
    pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="other workers disturb the times"),
]
# All eight tasks: plain JAX is the slower the more of them it vmaps.
WORKLOAD = OMNIGLOT


@pytest.fixture(scope="module")
def seconds():
    """Of a meta-step of Conv4-64, by who takes it; on one device, for the machine decides how two share cores."""
    tasks = tasks_of(WORKLOAD)
    weights = peers_jmeta.initial_weights(WORKLOAD, tasks)
    first_order = WORKLOAD._replace(second_order=False)
    steps = {
        "second order": peers.begin("jmeta_one_device", WORKLOAD, weights, tasks, np.float32),
        "first order": peers.begin("jmeta_one_device", first_order, weights, tasks, np.float32),
        "plain JAX": peers.begin("naive_vmap", WORKLOAD, weights, tasks, np.float32),
    }
    return {name: np.median(found) for name, found in in_turns(steps, repeats=3, least_seconds=0.1).items()}


def test_a_meta_step_is_eight_times_as_fast_as_plain_jax_vmapped(seconds):
    assert seconds["plain JAX"] / seconds["second order"] >= 8


def test_second_order_costs_little_more_than_its_arithmetic(seconds):
    """Its count is 1.5 times first order's at five steps (tests/benchmarks/test_order.py).

    jax 0.12 takes 1.45, jax 0.10 takes 1.9 (docs/decisions/0005-differentiation.md).
    """
    usual = 1.5 if jax.__version_info__ >= (0, 12) else 1.9
    assert seconds["second order"] / seconds["first order"] <= usual * 4 / 3


@functools.cache
def temporary_bytes(inner_steps, second_order=True, **options):
    workload = WORKLOAD._replace(width=32, inner_steps=inner_steps, second_order=second_order)
    batch = peers_jmeta.as_tasks(tasks_of(workload), np.float32)
    return peers_jmeta.compiled_train_step(workload, batch, **options).memory_analysis().temp_size_in_bytes


# Checkpoints are of numbers of steps with a whole root: of a last step beside the segments jax 0.10 keeps what the
# barrier should drop (docs/decisions/0005-differentiation.md).
@pytest.mark.parametrize(
    ("inner_steps", "checkpoint", "most"), [(5, False, 1.15), (10, False, 1.25), (9, True, 1.1), (64, True, 1.1)]
)
def test_the_memory_of_second_order_over_that_of_first(inner_steps, checkpoint, most):
    first = temporary_bytes(5, second_order=False)  # the same at any number of steps
    assert first < temporary_bytes(inner_steps, checkpoint=checkpoint) <= most * first
