"""The notebooks as they are committed."""

import json
from datetime import datetime
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.mark.parametrize("name", ["quickstart", "order", "learners", "compose"])
def test_a_notebook_ran_from_top_to_bottom_in_less_than_three_minutes(name):
    path = NOTEBOOKS / f"{name}.ipynb"
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    written = [cell["metadata"].get("execution", {}) for cell in cells]
    assert all(written), "run `make notebooks OVERWRITE=--overwrite`, which writes when each cell ran"
    times = [datetime.fromisoformat(time) for cell in written for time in cell.values()]
    assert (max(times) - min(times)).total_seconds() < 180
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
