"""Writes the tables of the documents from the results in benchmarks/results.

python -m benchmarks.tables
"""

import itertools
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# Published accuracies on Omniglot, in per cent: 5-way 1-shot, 5-way 5-shot, 20-way 1-shot, 20-way 5-shot.
SHAPES = ((5, 1), (5, 5), (20, 1), (20, 5))
PUBLISHED = {
    "protonet": ("98.8", "99.7", "96.0", "98.9"),  # Snell et al., 2017, table 1
    "maml": ("98.7 ± 0.4", "99.9 ± 0.1", "95.8 ± 0.3", "98.9 ± 0.2"),  # Finn et al., 2017, table 1
    "matching": ("98.1", "98.9", "93.8", "98.5"),  # Vinyals et al., 2016, table 1
    "siamese": ("97.3", "98.4", "88.2", "97.0"),  # Koch et al., 2015, as in Sung et al., 2018, table 1
    "relation": ("99.6", "99.8", "97.6", "99.1"),  # Sung et al., 2018, table 1
    "r2d2": ("98.6", "99.7", "94.7", "98.9"),  # Bertinetto et al., 2019, table 2
    "snail": ("99.07", "99.78", "97.64", "99.36"),  # Mishra et al., 2018, table 1
    "mann": ("82.8", "94.9", "", ""),  # Santoro et al., 2016, table 1: second and fifth instance, no convolutions
}


def omniglot() -> str:
    """Accuracy on Omniglot's test characters beside the published figure, and the command of each run."""
    rows = []
    for result in reversed(_results("omniglot-*.json")):
        learner = result["name"].split("-")[0]
        steps, device = result["configuration"]["steps"], _device(result["machine"])
        training = f"{steps:,} steps, {result['training_seconds'] / 60:.0f} min on {device}"
        for test in result["tests"]:
            ways, shots = test["ways"], test["shots"]
            figure = _accuracy(test)
            published = PUBLISHED[learner][SHAPES.index((ways, shots))]
            command = f"`python -m benchmarks.omniglot {result['name']}`"
            rows.append([f"`{learner}`", f"{ways}-way {shots}-shot", figure, published, training, command])
    return _table(["learner", "task", "accuracy", "published", "training", "command"], rows)


def _device(machine):
    return f"{machine['cores']} CPU cores" if machine["platform"] == "cpu" else machine["device"]


def chunks() -> str:
    """Tasks per second of a meta-step by how many tasks are vmapped at a time."""
    return on_each_device("chunks-*.json", _chunk_table)


def _chunk_table(results):
    found = results[0]["rows"]
    rows = []
    for row in found:
        rates = [f"{rate:,.0f}" for rate in row["tasks_per_second"].values()]
        rows.append([row["workload"], f"{row['largest_array_bytes'] / 2**20:.2f} MiB", *rates])
    return _table(["MAML, 1 inner step", "largest array", *found[0]["tasks_per_second"]], rows)


def on_each_device(pattern: str, table: Callable[[list[dict[str, Any]]], str]) -> str:
    """A table of the CPU's results, and below it one of every accelerator's that has some, with its name."""
    found = _results(pattern)
    of_cpu = [result for result in found if result["machine"]["platform"] == "cpu"]
    tables = [table(of_cpu)] if of_cpu else []
    for device, results in on_accelerators(found).items():
        tables.append(f"On {device}:\n\n{table(results)}")
    return "\n\n".join(tables) or "There are no results yet."


def on_accelerators(found: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The results of each accelerator, by its name."""
    devices: dict[str, list[dict[str, Any]]] = {}
    for result in found:
        if result["machine"]["platform"] != "cpu":
            devices.setdefault(result["machine"]["device"], []).append(result)
    return devices


def _results(pattern):
    return [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks" / "results").glob(pattern))]


def accelerator() -> str:
    """A meta-step by number of tasks, precision, form of convolution and XLA's options, of the committed results."""
    return on_each_device("accelerator/*.json", accelerator_table)


def accelerator_table(results: Iterable[dict[str, Any]]) -> str:
    """A meta-step by number of tasks, precision, form of convolution and XLA's options."""
    header = ["workload", "convolutions", "XLA", "precision", "tasks", "tasks/s", "TFLOP/s"]
    header += ["of a matrix product's rate", "memory", "compiled in"]
    body = []
    for result in results:
        for row in result["rows"]:
            cells = [result["workload"], row["form"], row["xla"], row["dtype"], row["tasks"]]
            body.append([*cells, *_step_cells(row)])
    return _table(header, body)


def _step_cells(row):
    if "failed" in row:
        return [f"failed: {row['failed']}", "", "", "", ""]
    cells = [_rate(row["tasks_per_second"]), f"{row['teraflops']:.3g}", f"{row['of_product_rate']:.1%}"]
    return [*cells, f"{row['temporary_mebibytes']:,.0f} MiB", f"{row['compile_seconds']:.1f} s"]


def peers() -> str:
    """jmeta beside each peer, workload by workload, of the committed results."""

    def table(results):
        results = _in_order(results)
        return peer_table(results) + made_by(results, lambda result: result["workload"])

    return on_each_device("peers/*.json", table)


def peer_table(results: Iterable[dict[str, Any]]) -> str:
    """jmeta beside each peer, workload by workload."""
    header = [
        "workload",
        "peer",
        "tasks/s",
        "quartiles",
        "jmeta / it",
        "of a matrix product's rate",
        "first call",
        "again",
        "memory",
    ]
    rows = []
    for result in results:
        for row in result["rows"]:
            quartiles = " to ".join(map(_rate, row["quartiles"]))
            cells = [result["workload"], f"`{row['peer']}`", _rate(row["tasks_per_second"]), quartiles]
            cells += [in_rounds(row["of_rounds"]["jmeta_over_it"], "{:.2f}"), f"{row['of_product_rate']:.1%}"]
            cells += [f"{row[f'first_step_seconds{again}']:.1f} s" for again in ("", "_from_cache")]
            rows.append([*cells, f"{row['peak_memory_mebibytes']:,.0f} MiB"])
    return _table(header, rows)


TORCH_LOOPS = ("autograd_loop", "func_loop", "higher_loop", "torchopt_loop", "learn2learn_loop")
TORCH = (*TORCH_LOOPS, "func_vmap")


def peers_in_short() -> str:
    """How many times as fast jmeta is as the best of each kind of peer."""
    return on_each_device("peers/*.json", _short_peer_table)


def made_by(results: Iterable[dict[str, Any]], name: Callable[[dict[str, Any]], str]) -> str:
    """By which commits results were made, below their table."""
    commits: dict[str, list[str]] = {}
    for result in results:
        commits.setdefault(result.get("commit") or "not noted", []).append(f"`{name(result)}`")
    return "\n\nCommits: " + "; ".join(f"{commit} ({', '.join(names)})" for commit, names in commits.items()) + "."


def _short_peer_table(results):
    header = ["workload", "machine, GFLOP/s", "jmeta, tasks/s"]
    header += [f"times {peer}" for peer in ("plain JAX", "PyTorch, task by task", "PyTorch, vmapped")]
    kinds = (("naive_vmap", "optax_loop"), TORCH_LOOPS, ("func_vmap",))
    rows = []
    for result in _in_order(results):
        best = [over_the_best(result, kind) for kind in kinds]
        machine, rate = f"{result['product_gigaflops']:.0f}", _rate(result["rows"][0]["tasks_per_second"])
        ratios = [in_rounds(of_kind, "{:.2f}") if of_kind else "" for of_kind in best]
        rows.append([result["workload"], machine, rate, *ratios])
    return _table(header, rows)


def over_the_best(result: dict[str, Any], peers: Iterable[str]) -> list[float]:
    """How many times as fast jmeta is as the best of these peers, in each round; nothing if none of them was there."""
    rows = [row["of_rounds"]["jmeta_over_it"] for row in result["rows"] if row["peer"] in peers]
    return [min(ratios) for ratios in zip(*rows, strict=True)]


def in_rounds(values: Sequence[float], form: str) -> str:
    """The median, and the range if there is one."""
    median, low, high = (form.format(of(values)) for of in (statistics.median, min, max))
    return f"{median} ({low} to {high})" if len(values) > 1 else median


def devices() -> str:
    """What it gives to divide tasks over a device for each core."""
    rows = []
    for result in _in_order(_results("peers/cpu-*.json")):
        found = {row["peer"]: row for row in result["rows"]}
        if one := found.get("jmeta_one_device"):
            rates = [_rate(row["tasks_per_second"]) for row in (one, found["jmeta"])]
            rows.append([result["workload"], *rates, in_rounds(one["of_rounds"]["jmeta_over_it"], "{:.2f}")])
    return _table(["workload", "one device, tasks/s", "a device for each core", "over one"], rows)


def _rate(rate):
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


# Workload, peers, and how many times as fast as the best of them jmeta is meant to be.
TARGETS = (
    ("omniglot", TORCH, 2.0),
    ("omniglot-first-order", TORCH, 1.7),
    ("omniglot", ("naive_vmap",), 12.0),
    ("sinusoid-training", ("learn2learn_loop", "higher_loop"), 100.0),
    ("sinusoid", ("func_vmap",), 10.0),
    ("protonet-training", TORCH, 1.5),
    ("omniglot-evaluation", TORCH, 3.0),
)
# The same on an accelerator.
ACCELERATOR_TARGETS = (("omniglot-32", TORCH_LOOPS, 20.0), ("omniglot-32", ("func_vmap",), 3.0))


def targets() -> str:
    """What jmeta is meant to reach beside what it reached."""
    header = ["workload", "jmeta against", "meant", "measured", "met"]
    found = {result["workload"]: result for result in _results("peers/cpu-*.json")}
    rows = [_peer_target(workload, found, *target) for workload, *target in TARGETS]
    accelerators = on_accelerators(_results("peers/*.json")) or {"an accelerator": []}
    for device, results in accelerators.items():
        there = {result["workload"]: result for result in results}
        for workload, *target in ACCELERATOR_TARGETS:
            of_device, *cells = _peer_target(workload, there, *target)
            rows.append([f"{of_device} on {device}", *cells])
    jmeta = found["omniglot"]["rows"][0]
    rate = jmeta["of_product_rate"]
    rows.append(["omniglot", "a matrix product's rate", ">= 60 %", f"{rate:.0%}", met_in([rate >= 0.6])])
    for against, key, target in (
        ("first call", "first_step_seconds", 8),
        ("first call, from the compilation cache", "first_step_seconds_from_cache", 2),
    ):
        seconds = jmeta["of_rounds"][key]
        met = [second <= target for second in seconds]
        rows.append(["omniglot", against, f"<= {target} s", in_rounds(seconds, "{:.1f}") + " s", met_in(met)])
    order = _rows(_results("order/cpu-conv4-64.json"))
    exact = [row for row in order if (row["mode"], row["chunk"]) == ("mixed", "default")]
    rows += itertools.chain.from_iterable(map(second_order_targets, exact))
    return _table(header, rows)


def _peer_target(workload, found, others, target):
    result = found.get(workload)
    against = " and ".join(f"`{name}`" for name in others)
    if kind := {TORCH: "peers", TORCH_LOOPS: "loops"}.get(others):
        there = [row["peer"] for row in (result["rows"] if result else ()) if row["peer"] in others]
        number = f"of {len(there)}" if there else "of all"
        against = f"`{there[0]}`" if len(there) == 1 else f"the best {number} {kind} in PyTorch"
        others = [*there, *(peer for peer in others if result and peer in result["failed"])]
    return [workload, against, f">= {target:g} x", *compared(result, others, target)]


def second_order_targets(exact: dict[str, Any]) -> Iterator[list[str]]:
    """What an exact meta-gradient may cost beside first order's: its arithmetic in time, and a tenth more memory."""
    steps = exact["inner_steps"]
    meant = [("time", "milliseconds", exact["flops_ratio"], "its arithmetic, ")]
    if steps == 5:
        meant.append(("time", "milliseconds", 1.45, ""))
    meant.append(("memory", "temporary_bytes", 1.1, ""))
    for figure, key, target, name in meant:
        ratio = exact[f"{key}_ratio"]
        cells = [f"conv4-64, {steps} inner step{'s' if steps > 1 else ''}", f"its own first order, {figure}"]
        yield [*cells, f"<= {name}{target:.2f} x", f"{ratio:.2f} x", met_in([ratio <= target])]


def compared(result: dict[str, Any] | None, peers: Iterable[str], target: float) -> tuple[str, str]:
    """How many times as fast as the best of these peers jmeta is, and whether that is what is meant."""
    ratios = over_the_best(result, peers) if result else []
    if not ratios:
        return "not measured", ""
    there = [row["peer"] for row in result["rows"]]
    others = {
        "having failed": [peer for peer in peers if peer in result["failed"]],
        "not measured": [peer for peer in peers if peer not in (*there, *result["failed"])],
    }
    told = "".join(f", {' and '.join(f'`{peer}`' for peer in some)} {what}" for what, some in others.items() if some)
    met = met_in([ratio >= target for ratio in ratios])
    # The best of all may be one that was not measured.
    return in_rounds(ratios, "{:.2f}") + " x" + told, "not known" if others["not measured"] and met == "yes" else met


def met_in(met: Sequence[bool]) -> str:
    """Whether it is met in each round, or in how many."""
    return {len(met): "yes", 0: "no"}.get(sum(met), f"in {sum(met)} of {len(met)}")


def _in_order(results):
    order = ("sinusoid", "omniglot", "miniimagenet", "resnet12", "protonet")
    return sorted(results, key=lambda result: (order.index(result["workload"].split("-")[0]), result["workload"]))


NETWORKS = ("mlp", "conv4-32", "conv4-64", "resnet12")


def order() -> str:
    """What a meta-step costs by how it is differentiated, of the committed results."""

    def table(results):
        return order_table(_by_network(results)) + made_by(results, lambda result: result["rows"][0]["model"])

    return on_each_device("order/*.json", table)


def _by_network(results):
    return sorted(_rows(results), key=lambda row: NETWORKS.index(row["model"]))


def _rows(results):
    return [row for result in results for row in result["rows"]]


def order_table(rows: Iterable[dict[str, Any]]) -> str:
    """What a meta-step costs by how it is differentiated, each beside first order in the same run."""
    header = ["network", "inner steps", "tasks at once", "differentiation", "tasks/s", "quartiles"]
    header += ["time", "arithmetic", "memory", "compiled in"]
    body = []
    for row in rows:
        slow_and_fast = (row["tasks"] / (ms / 1e3) for ms in reversed(row["quartiles_milliseconds"]))
        ratios = [f"{row[f'{name}_ratio']:.2f}" for name in ("milliseconds", "flops", "temporary_bytes")]
        cells = [row["model"], row["inner_steps"], row["chunk"], row["mode"], _rate(row["tasks_per_second"])]
        cells += [" to ".join(map(_rate, slow_and_fast)), *ratios]
        body.append([*cells, f"{row['compile_seconds']:.1f} s"])
    return _table(header, body)


def order_in_short() -> str:
    """What an exact meta-step of Conv4 costs beside first order, and with `checkpoint=True`."""
    return on_each_device("order/*-conv4-64.json", _short_order_table)


def _short_order_table(results):
    rows: dict[int, list[Any]] = {}
    for row in _rows(results):
        if row["mode"] in ("mixed", "mixed, checkpoint"):
            ratios = [f"{row[f'{name}_ratio']:.2f} x" for name in ("milliseconds", "temporary_bytes")]
            rows.setdefault(row["inner_steps"], [row["inner_steps"]]).extend(ratios)
    header = ["inner steps", "time", "memory", "time, `checkpoint=True`", "memory, `checkpoint=True`"]
    return _table(header, list(rows.values()))


def learners() -> str:
    """Every learner on the same tasks with the same processor time: sinusoids and Omniglot."""
    header = [
        "learner",
        "sinusoid, mean squared error",
        "meta-steps",
        "adapts in",
        "Omniglot, 5-way 1-shot",
        "meta-steps",
        "adapts in",
    ]
    rows = []
    found = {(result["tasks"], result["learner"]): result for result in _results("learners/*.json")}
    for name in sorted(learner for tasks, learner in found if tasks == "omniglot"):
        cells = [f"`{name}`"]
        if result := found.get(("sinusoid", name)):
            test = result["tests"][0]
            cells += [_error(test), f"{result['steps']:,}"]
            cells += [f"{test['adaptation_milliseconds']:.2f} ms"]
        else:
            cells += ["classes only", "", ""]
        result = found["omniglot", name]
        test = result["tests"][0]
        cells += [_accuracy(test), f"{result['steps']:,}", f"{test['adaptation_milliseconds']:.1f} ms"]
        rows.append(cells)
    return _table(header, rows)


def conditional() -> str:
    """Learners that adapt by a forward pass, beside MAML, on sinusoids."""
    rows = []
    for result in _results("learners/sinusoid-*.json"):
        if result["learner"] in ("cnp", "in_context", "maml"):
            test = result["tests"][0]
            adaptation = f"{test['adaptation_milliseconds']:.2f} ms"
            rows.append([f"`{result['learner']}`", _error(test), f"{result['steps']:,}", adaptation])
    return _table(["learner", "sinusoid, mean squared error", "meta-steps", "adapts in"], rows)


def encoders() -> str:
    """Learners on one encoder, each test beside the published figure."""
    shapes = [f"{ways}-way {shots}-shot" for ways, shots in SHAPES]
    header = ["learner", *shapes, "transductive", "trained for", "meta-steps", "memory", "adapts in"]
    rows = []
    for result in _results("learners/omniglot-encoders-*.json"):
        if result["tasks"] != "omniglot-encoders":
            continue  # trained for its full length
        tested = {(test["ways"], test["shots"]): _accuracy(test) for test in result["tests"]}
        published = PUBLISHED.get(result["learner"], ("",) * len(SHAPES))
        cells = [f"`{result['learner']}`"]
        for shape, figure in zip(SHAPES, published, strict=True):
            cells.append(f"{tested.get(shape, '')} {f'({figure})' if figure else ''}".strip())
        cells += ["yes" if any(test["transductive"] for test in result["tests"]) else "no"]
        cells += [f"{result['processor_seconds'] / 60:.0f} min", f"{result['steps']:,}"]
        cells += [f"{result['temporary_bytes'] / 2**20:.0f} MiB"]
        rows.append([*cells, f"{result['tests'][0]['adaptation_milliseconds']:.1f} ms"])
    return _table(header, rows)


def linear_regression() -> str:
    """A Transformer's error on linear regression beside the least there is."""
    header = ["dimensions", "examples", "noise", "meta-steps", "in_context", "optimum", "ratio", "ratio beyond noise"]
    rows = []
    for result in _results("linear-regression.json"):
        errors = [f"{result['errors'][name]:.4f}" for name in ("in_context", "optimum")]
        ratios = [f"{result[name]:.3f}" for name in ("ratio", "ratio_beyond_noise")]
        cells = [result[name] for name in ("dimensions", "shots", "noise")]
        rows.append([*cells, f"{result['meta_steps']:,}", *errors, *ratios])
    return _table(header, rows)


def sinusoid() -> str:
    """MAML at the paper's length, the median over seeds."""
    header = ["inner steps in training", "seeds", "with a NaN parameter", "tasks skipped", *(
        f"error after {steps}" for steps in (1, 5, 10)), "the policy costs"]  # fmt: skip
    rows = []
    for result in _results("sinusoid-*.json"):
        policy = result["policy_microseconds"]
        steps, some = result["inner_steps"], result["runs"]
        errors = [[run["test"][number]["loss"] for run in some] for number in ("1", "5", "10")]
        cells = [steps, len(some), sum(not run["finite_parameters"] for run in some)]
        cells += [sum(run["skipped_tasks"] for run in some)]
        cells += map(over_seeds, errors)
        rows.append([*cells, f"{policy['with'] / policy['without'] - 1:.1%}"])
    return _table(header, rows)


def over_seeds(errors: list[float | None]) -> str:
    """The median and the worst; None is that of a seed from which a test task diverges, worse than any other."""
    ordered = sorted(math.inf if error is None else error for error in errors)
    finite, median = [error for error in ordered if math.isfinite(error)], statistics.median(ordered)
    number = len(errors) - len(finite)
    if not math.isfinite(median):
        return f"diverged from {number} of {len(errors)}"
    return f"{median:.3f} (worst {finite[-1]:.3f}{f', {number} diverged' if number else ''})"


def _accuracy(test):
    return f"{100 * test['accuracy']:.1f} ± {100 * test['ci95']:.1f} %"


def _error(test):
    if test["loss"] is None:
        return "diverged"
    return f"{test['loss']:.3f} ± {test['loss_ci95']:.3f}"


def _table(header, rows):
    """A Markdown table."""
    header, *body = (f"| {' | '.join(map(str, cells))} |" for cells in [header, *rows])
    return "\n".join([header, "|---" * (header.count(" | ") + 1) + "|", *body])


DOCUMENTS = tuple(
    ROOT / path
    for path in (
        "README.md",
        "benchmarks/README.md",
        "docs/results.md",
        "docs/decisions/0004-chunks.md",
        "docs/decisions/0005-differentiation.md",
        "docs/decisions/0014-devices.md",
    )
)
TABLES = {
    "accelerator": accelerator,
    "chunks": chunks,
    "conditional": conditional,
    "devices": devices,
    "encoders": encoders,
    "learners": learners,
    "linear_regression": linear_regression,
    "omniglot": omniglot,
    "order": order,
    "order_in_short": order_in_short,
    "peers": peers,
    "peers_in_short": peers_in_short,
    "sinusoid": sinusoid,
    "targets": targets,
}


def with_tables(text: str) -> str:
    """The text with what stands between its markers `<!-- table:NAME -->` and `<!-- end -->` made anew."""

    def fill(match: re.Match) -> str:
        return f"<!-- table:{match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table:(\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(with_tables(document.read_text()))
