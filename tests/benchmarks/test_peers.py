"""That peers have jmeta's meta-gradient, so that their times compare."""

import functools
import json
import math
import os
import sys
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from benchmarks import peers, peers_jax, peers_jmeta
from benchmarks.workloads import OMNIGLOT, tasks_of, WORKLOADS

STRIDED = OMNIGLOT._replace(tasks=2, queries=2, inner_steps=2, width=3, image=(8, 8, 1), strided=True)
SMALL = {
    "sinusoid": WORKLOADS["sinusoid"]._replace(tasks=2, inner_steps=2),
    "omniglot": STRIDED._replace(image=(16, 16, 1), strided=False),
    "omniglot-strided": STRIDED,
    "omniglot-evaluation": STRIDED._replace(tasks=4, work="evaluation"),
    "protonet": STRIDED._replace(tasks=1, ways=7, learner="protonet"),
    "resnet12": STRIDED._replace(tasks=1, inner_steps=1, image=(16, 16, 1), network="resnet12", strided=False),
}


@functools.cache
def found_by_jmeta(workload):
    return peers.outcome("jmeta", workload)


@pytest.mark.parametrize("peer", [peer for peer in peers.PEERS if peer != "jmeta"])
@pytest.mark.parametrize(
    ("name", "second_order"),
    [
        ("sinusoid", True),
        pytest.param("omniglot", True, marks=pytest.mark.long),
        pytest.param("sinusoid", False, marks=pytest.mark.long),
        pytest.param("omniglot", False, marks=pytest.mark.long),
        pytest.param("omniglot-strided", True, marks=pytest.mark.long),
        pytest.param("omniglot-evaluation", True, marks=pytest.mark.long),
        pytest.param("protonet", True, marks=pytest.mark.long),
        pytest.param("resnet12", True, marks=pytest.mark.long),
    ],
)
def test_a_peer_has_jmetas_meta_gradient(name, second_order, peer):
    workload = SMALL[name]._replace(second_order=second_order)
    if not peers.does(peer, workload):
        pytest.skip(f"{peer} does no such work")
    if peers.PEERS[peer].file == "peers_torch" and not peers.is_installed(peer):
        pytest.skip(f"{peers.PEERS[peer].package} is not installed")
    workload = peers.of_check(workload)
    found = {"jmeta": found_by_jmeta(workload), peer: peers.outcome(peer, workload)}
    assert peers.check(found, workload)[peer] < 1e-9


def test_a_peer_with_another_meta_gradient_is_refused(monkeypatch, in_this_process):
    right = peers_jax.naive_vmap
    monkeypatch.setitem(peers_jax.PEERS, "naive_vmap", lambda w: right(w._replace(second_order=False)))
    with pytest.raises(ValueError, match="naive_vmap has another meta-gradient"):
        peers.checked(("jmeta", "naive_vmap"), SMALL["sinusoid"])


def test_every_kind_of_workload_has_its_arithmetic_and_first_order_less_of_it():
    def operations(**changes):
        workload = SMALL["sinusoid"]._replace(**changes)
        return peers_jmeta.operations(workload, tasks_of(workload))

    assert 0 < operations(work="evaluation") < operations(second_order=False) < operations()


def test_workloads_that_differ_in_size_or_draw_their_own_tasks_share_a_check():
    one, *others = (peers.of_check(WORKLOADS[name]) for name in ("omniglot", "omniglot-32", "omniglot-training"))
    assert others == [one, one]


@pytest.mark.long
def test_a_comparison_writes_a_row_for_each_peer_and_tells_which_could_not_begin(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(WORKLOADS, "sinusoid", SMALL["sinusoid"])
    monkeypatch.setattr(peers, "ON_CPU", peers.Measures(0.1, 64))
    first_calls = peers.first_calls

    def out_of_memory(process, peer, *others):
        if peer == "optax_loop":
            raise MemoryError("no more")
        return first_calls(process, peer, *others)

    monkeypatch.setattr(peers, "first_calls", out_of_memory)
    peers.main(workloads=("sinusoid",), peers=("naive_vmap", "optax_loop"), rounds=2, repeats=1, out=tmp_path)
    result = json.loads((tmp_path / "cpu-sinusoid.json").read_text())
    assert [row["peer"] for row in result["rows"]] == ["jmeta", "naive_vmap"]
    assert all(row["tasks_per_second"] > 0 and row["first_step_seconds"] > 0 for row in result["rows"])
    ratios = result["rows"][1]["of_rounds"]["jmeta_over_it"]
    assert len(ratios) == 2
    assert result["rows"][1]["jmeta_over_it"] == pytest.approx(np.median(ratios), abs=1e-3)
    assert result["failed"] == {"optax_loop": "MemoryError: no more"}
    assert "| sinusoid | `naive_vmap` |" in (tmp_path / "cpu.md").read_text()
    told = capsys.readouterr().out
    assert "jmeta 1.00 times that" in told
    assert "optax_loop       failed: MemoryError: no more" in told


def failing(peer, error):
    """`begin`, but that this peer fails."""
    begin = peers.begin

    def begin_or_fail(name, *others):
        if name == peer:
            raise error
        return begin(name, *others)

    return begin_or_fail


def test_a_peer_that_fails_in_the_check_has_no_row_and_costs_no_other_its_own(tmp_path, monkeypatch, in_this_process):
    monkeypatch.setitem(WORKLOADS, "sinusoid", SMALL["sinusoid"])
    monkeypatch.setattr(peers, "begin", failing("optax_loop", RuntimeError("no kernel")))
    peers.main(workloads=("sinusoid",), peers=("naive_vmap", "optax_loop"), rounds=1, repeats=1, out=tmp_path)
    result = json.loads((tmp_path / "cpu-sinusoid.json").read_text())
    assert [row["peer"] for row in result["rows"]] == ["jmeta", "naive_vmap"]
    assert all(row["tasks_per_second"] > 0 and row["error"] < 1e-9 for row in result["rows"])
    assert result["failed"] == {"optax_loop": "RuntimeError: no kernel"}


ROW = {
    "peer": "jmeta",
    "tasks_per_second": 20.0,
    "quartiles": [19.0, 21.0],
    "jmeta_over_it": 1.0,
    "of_rounds": {"jmeta_over_it": [1.0]},
    "of_product_rate": 0.5,
    "first_step_seconds": 7.0,
    "first_step_seconds_from_cache": 2.0,
    "peak_memory_mebibytes": 1000.0,
    "error": 1e-12,
}


def test_a_workload_that_fails_costs_no_other_its_result(tmp_path, monkeypatch, capsys):
    def measure(workload, peers, rounds, repeats):
        yield {
            "rounds": 1,
            "repeats": 1,
            "product_gigaflops": 1.0,
            "rows": [ROW],
            "failed": {"optax_loop": "no memory"},
        }
        if workload.inner_steps == 5:
            raise RuntimeError("no kernel")

    monkeypatch.setitem(WORKLOADS, "sinusoid", SMALL["sinusoid"])
    monkeypatch.setattr(peers, "measure", measure)
    with pytest.raises(RuntimeError, match="no kernel"):
        peers.main(workloads=("omniglot", "sinusoid"), peers=("naive_vmap",), out=tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"cpu-omniglot.partial", "cpu-sinusoid.json", "cpu.md", "cpu.png"}
    assert "optax_loop       failed: no memory" in capsys.readouterr().out


def test_a_tpu_is_refused_since_it_serves_one_process(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(ValueError, match="has several processes, and a TPU serves one"):
        peers.main(workloads=("sinusoid",))


def test_jmeta_may_not_fail_in_the_check(monkeypatch, in_this_process):
    monkeypatch.setattr(peers, "begin", failing("jmeta", RuntimeError("no kernel")))
    with pytest.raises(RuntimeError, match="no kernel"):
        peers.checked(("jmeta",), SMALL["sinusoid"])


@pytest.fixture
def round_in_which(monkeypatch, in_this_process):
    """`(peer, call) -> Round`: what is measured if that call of a peer's step, once begun, fails."""

    def measure(peer, call):
        calls = dict.fromkeys(("jmeta", "func_loop", "naive_vmap"), 0)

        def step(name):
            calls[name] += 1
            if (name, calls[name]) == (peer, call):
                raise MemoryError("no more")

        def begun(process, name, *_):
            process.begun.append(functools.partial(step, name))
            return {"first_step_seconds": 1.0}

        monkeypatch.setattr(peers, "first_calls", begun)
        return peers.one_round(SMALL["sinusoid"], list(calls), {}, [], repeats=2)

    return measure


@pytest.mark.parametrize("call", [1, 2, 3], ids=["warming up", "warming up again", "timed"])
def test_a_peer_that_fails_while_it_is_timed_is_left_out_and_the_others_are_not(round_in_which, call):
    found = round_in_which("func_loop", call)
    assert found.failed == {"func_loop": "MemoryError: no more"}
    assert math.inf in found.seconds["func_loop"]
    for name in ("jmeta", "naive_vmap", "product"):
        assert len(found.seconds[name]) == 2
        assert np.isfinite(found.seconds[name]).all()


def test_jmeta_may_not_fail_while_it_is_timed(round_in_which):
    with pytest.raises(MemoryError, match="no more"):
        round_in_which("jmeta", 3)


def test_a_peer_whose_process_ends_is_left_out():
    failed = {}
    with peers.process_of_its_own() as process, peers.left_out_if_it_fails("func_loop", process, failed):
        process.submit(os._exit, 1).result()
    assert failed["func_loop"].startswith("BrokenProcessPool: ")


@pytest.mark.parametrize(("platform", "peak"), [("cpu", 900), ("gpu", 100)])
def test_the_memory_of_an_accelerator_is_that_of_a_process_which_compiles_nothing(
    monkeypatch, in_this_process, platform, peak
):
    found = iter([(3.0, 900), (1.0, 100)])
    monkeypatch.setattr(peers, "prepare", lambda peer: None)
    monkeypatch.setattr(peers, "first_call", lambda *_: next(found))
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    figures = peers.first_calls(peers.process_of_its_own(), "jmeta", SMALL["sinusoid"], {}, [])
    expected = {"first_step_seconds": 3.0, "first_step_seconds_from_cache": 1.0, "peak_memory_mebibytes": peak}
    assert figures == expected


def test_the_memory_of_pytorch_on_a_gpu_is_that_of_a_step_after_the_first(monkeypatch):
    peak = [900 * 2**20]  # of the first step
    cuda = Mock(reset_peak_memory_stats=peak.clear, max_memory_allocated=lambda: max(peak))
    monkeypatch.setitem(sys.modules, "torch", Mock(cuda=cuda))
    monkeypatch.setattr(jax, "local_devices", lambda: [Mock(memory_stats=lambda: {"peak_bytes_in_use": 2**20})])
    assert peers.device_memory(lambda: peak.append(100 * 2**20)) == 101


def test_peers_that_are_too_large_for_a_cpu_are_left_out_unless_they_are_named():
    assert "naive_vmap" not in peers.chosen("miniimagenet", None)
    assert peers.chosen("miniimagenet", ("naive_vmap",)) == ["jmeta", "naive_vmap"]
    assert peers.chosen("omniglot-evaluation", ("naive_vmap", "optax_loop")) == ["jmeta", "optax_loop"]


def test_a_named_peer_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(peers, "is_installed", lambda peer: peer == "jmeta")
    assert peers.chosen("sinusoid", None) == ["jmeta"]
    with pytest.raises(ValueError, match="peers names 'func_vmap', but torch is not installed for this device"):
        peers.main(workloads=("sinusoid",), peers=("func_vmap",))


@pytest.mark.parametrize(
    "peer", ["jmeta", "naive_vmap", "autograd_loop", "func_vmap", "higher_loop", "torchopt_loop", "learn2learn_loop"]
)
def test_training_moves_every_weight_by_adams_first_step_and_starts_afresh_each_time(peer):
    workload = SMALL["sinusoid"]._replace(work="training")
    if not peers.has(peer, workload):
        pytest.skip(f"{peers.PEERS[peer].package} is not installed")
    tasks = tasks_of(workload)
    weights = peers_jmeta.initial_weights(workload, tasks)
    step = peers.begin(peer, workload, weights, tasks, np.float32)
    for _ in range(2):
        after = step()
        moved = {name: np.abs(np.asarray(after[name]) - start).max() for name, start in weights.items()}
        assert moved == pytest.approx(dict.fromkeys(weights, 1e-3), rel=1e-2)


def test_a_peer_that_leaves_out_a_weight_is_refused():
    with pytest.raises(KeyError):
        peers.distance({"w": np.ones(2)}, {"w": np.ones(2), "b": np.ones(1)})


def test_an_unknown_workload_or_peer_is_refused():
    with pytest.raises(ValueError, match="workloads has 'cifar'; there are sinusoid, sinusoid-training, omniglot,"):
        peers.main(workloads=("cifar",))
    with pytest.raises(ValueError, match="peers has 'pytorch-meta'; there are jmeta"):
        peers.main(peers=("pytorch-meta",))
