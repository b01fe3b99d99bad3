"""jmeta's own times, to compare one state of the code with another on one machine.

pytest benchmarks --benchmark-only --benchmark-autosave --benchmark-compare
"""

import numpy as np
import pytest

from benchmarks import peers, peers_jmeta
from benchmarks.workloads import tasks_of, WORKLOADS

NAMES = ("sinusoid", "sinusoid-training", "omniglot", "omniglot-first-order", "omniglot-strided", "protonet")


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of(name, benchmark):
    workload = WORKLOADS[name]
    tasks = tasks_of(workload)
    step = peers.begin("jmeta", workload, peers_jmeta.initial_weights(workload, tasks), tasks, np.float32)
    benchmark.pedantic(step, rounds=5, warmup_rounds=2)
