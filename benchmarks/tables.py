"""Writes the tables of README.md and docs/ from the results in benchmarks/results.

python -m benchmarks.tables
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Published accuracies on Omniglot, in per cent, by learner and (ways, shots):
# Snell et al., 2017, table 1; Finn et al., 2017, table 1.
PUBLISHED = {
    ("protonet", 5, 1): "98.8",
    ("protonet", 5, 5): "99.7",
    ("protonet", 20, 1): "96.0",
    ("protonet", 20, 5): "98.9",
    ("maml", 5, 1): "98.7 ± 0.4",
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
            figure = f"{100 * test['accuracy']:.1f} ± {100 * test['ci95']:.1f} %"
            published = PUBLISHED[learner, ways, shots]
            command = f"`python -m benchmarks.omniglot {result['name']}`"
            rows.append([f"`{learner}`", f"{ways}-way {shots}-shot", figure, published, training, command])
    return _table(["learner", "task", "accuracy", "published", "training", "command"], rows)


def _device(machine):
    return f"{machine['cores']} CPU cores" if machine["platform"] == "cpu" else machine["device"]


def chunks() -> str:
    """Tasks per second of a meta-step by how many tasks are vmapped at a time."""
    found = _results("chunks-cpu.json")[0]["rows"]
    rows = []
    for row in found:
        rates = [f"{rate:,.0f}" for rate in row["tasks_per_second"].values()]
        rows.append([row["workload"], f"{row['largest_array_bytes'] / 2**20:.2f} MiB", *rates])
    return _table(["MAML, 1 inner step", "largest array", *found[0]["tasks_per_second"]], rows)


def _results(pattern):
    return [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks" / "results").glob(pattern))]


def order() -> str:
    """What a meta-step costs by how it is differentiated, each beside first order in the same run."""
    header = ["network", "inner steps", "differentiation", "tasks/s", "time", "arithmetic", "memory", "compiled in"]
    rows = []
    for row in _results("order-cpu.json")[0]["rows"]:
        if row["chunk"] == "default":
            ratios = [f"{row[f'{name}_ratio']:.2f}" for name in ("milliseconds", "flops", "temporary_bytes")]
            rate = (
                f"{row['tasks_per_second']:,.3g}"
                if row["tasks_per_second"] < 1000
                else f"{row['tasks_per_second']:,.0f}"
            )
            cells = [row["model"], row["inner_steps"], row["mode"], rate, *ratios, f"{row['compile_seconds']:.1f} s"]
            rows.append(cells)
    return _table(header, rows)


def learners() -> str:
    """Every learner on the same tasks with the same processor time: sinusoids and Omniglot."""
    header = [
        "learner",
        "sinusoid, mean squared error",
        "adapts in",
        "Omniglot, 5-way 1-shot",
        "meta-steps",
        "adapts in",
    ]
    rows = []
    found = {(result["tasks"], result["learner"]): result for result in _results("learners/*.json")}
    for name in dict.fromkeys(learner for _, learner in sorted(found)):
        cells = [f"`{name}`"]
        if result := found.get(("sinusoid", name)):
            test = result["tests"][0]
            cells += [f"{test['loss']:.3f} ± {test['loss_ci95']:.3f}", f"{test['adaptation_milliseconds']:.2f} ms"]
        else:
            cells += ["classes only", ""]
        if result := found.get(("omniglot", name)):
            test = result["tests"][0]
            cells += [f"{100 * test['accuracy']:.1f} ± {100 * test['ci95']:.1f} %", f"{result['steps']:,}"]
            cells += [f"{test['adaptation_milliseconds']:.1f} ms"]
        else:
            cells += ["", "", ""]
        rows.append(cells)
    return _table(header, rows)


def sinusoid() -> str:
    """MAML at the paper's length, the mean over seeds."""
    header = ["inner steps in training", "seeds", "with a NaN parameter", "tasks skipped", *(
        f"error after {steps}" for steps in (1, 5, 10))]  # fmt: skip
    rows = []
    for result in _results("sinusoid-*.json"):
        steps, some = result["inner_steps"], result["runs"]
        errors = [[run["test"][number]["loss"] for run in some] for number in ("1", "5", "10")]
        cells = [steps, len(some), sum(not run["finite_parameters"] for run in some)]
        cells += [sum(run["skipped_tasks"] for run in some)]
        cells += [f"{sum(values) / len(values):.3f} (worst {max(values):.3f})" for values in errors]
        rows.append(cells)
    return _table(header, rows)


def _table(header, rows):
    """A Markdown table."""
    header, *body = (f"| {' | '.join(map(str, cells))} |" for cells in [header, *rows])
    return "\n".join([header, "|---" * (header.count(" | ") + 1) + "|", *body])


DOCUMENTS = tuple(
    ROOT / path
    for path in (
        "README.md",
        "docs/decisions/0004-chunks.md",
        "docs/decisions/0005-differentiation.md",
        "docs/decisions/0006-nonfinite-tasks.md",
    )
)
TABLES = {"chunks": chunks, "learners": learners, "omniglot": omniglot, "order": order, "sinusoid": sinusoid}


def with_tables(text: str) -> str:
    """The text with what stands between its markers `<!-- table:NAME -->` and `<!-- end -->` made anew."""

    def fill(match: re.Match) -> str:
        return f"<!-- table:{match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table:(\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(with_tables(document.read_text()))
