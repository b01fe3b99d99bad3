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
    rows = ["| learner | task | accuracy | published | training | command |", "|---|---|---|---|---|---|"]
    for path in sorted((ROOT / "benchmarks" / "results").glob("omniglot-*.json"), reverse=True):
        result = json.loads(path.read_text())
        learner = result["name"].split("-")[0]
        steps, device = result["configuration"]["steps"], _device(result["machine"])
        training = f"{steps:,} steps, {result['training_seconds'] / 60:.0f} min on {device}"
        for test in result["tests"]:
            ways, shots = test["ways"], test["shots"]
            figure = f"{100 * test['accuracy']:.1f} ± {100 * test['ci95']:.1f} %"
            published = PUBLISHED[learner, ways, shots]
            command = f"`python -m benchmarks.omniglot {result['name']}`"
            rows.append(f"| `{learner}` | {ways}-way {shots}-shot | {figure} | {published} | {training} | {command} |")
    return "\n".join(rows)


def _device(machine):
    return f"{machine['cores']} CPU cores" if machine["platform"] == "cpu" else machine["device"]


def chunks() -> str:
    """Tasks per second of a meta-step by how many tasks are vmapped at a time."""
    result = json.loads((ROOT / "benchmarks" / "results" / "chunks-cpu.json").read_text())
    sizes = list(result["rows"][0]["tasks_per_second"])
    rows = [f"| MAML, 1 inner step | largest array | {' | '.join(sizes)} |", "|---" * (len(sizes) + 2) + "|"]
    for row in result["rows"]:
        rates = " | ".join(f"{rate:,.0f}" for rate in row["tasks_per_second"].values())
        rows.append(f"| {row['workload']} | {row['largest_array_bytes'] / 2**20:.2f} MiB | {rates} |")
    return "\n".join(rows)


DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "decisions" / "0004-chunks.md")
TABLES = {"chunks": chunks, "omniglot": omniglot}


def with_tables(text: str) -> str:
    """The text with what stands between its markers `<!-- table:NAME -->` and `<!-- end -->` made anew."""

    def fill(match: re.Match) -> str:
        return f"<!-- table:{match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table:(\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(with_tables(document.read_text()))
