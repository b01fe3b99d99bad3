"""Imports run one way, and importing the package stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jmeta

ROOT = Path(jmeta.__file__).parent

# What each layer may import of jmeta, as prefixes; a layer may import itself but for learners.
ALLOWED = {
    "types": (),
    "trees": ("types",),
    "checks": ("types", "trees"),
    "networks": ("types", "checks"),
    "losses": ("types", "checks"),
    "functional": ("types", "trees", "checks", "networks", "functional"),
    "models": ("types", "checks", "networks", "functional", "models"),
    # Of models, the paper's second network.
    "learners": ("types", "checks", "networks", "losses", "functional", "models"),
    "data": ("types", "checks", "data"),
    "files": (),
    "metrics": ("files",),
    "checkpoints": ("types", "trees"),
    "batching": ("types",),
    "evaluation": ("types", "checks", "networks", "losses", "files", "batching"),
    "plotting": ("types", "evaluation"),
    "training": ("types", "checks", "trees", "networks", "losses", "batching"),
    "reporting": ("checks", "metrics", "evaluation"),
    "signals": (),
    "fitting": (
        *("types", "checks", "files", "checkpoints", "batching", "evaluation", "training"),
        *("reporting", "signals"),
    ),
    "configuration": ("types", "checks", "losses", "functional", "models", "learners", "data", "training"),
    "runs": ("types", "checkpoints", "training", "configuration"),
}
# The face, the command line and its demonstration may import all.
FREE = {"__init__", "__main__", "cli", "demo"}
# Flax stays in models.
FORBIDDEN = {"functional": ("flax",), "learners": ("flax",), "data": ("flax",)}

MODULES = sorted(ROOT.rglob("*.py"))


def imported(path):
    """Every module named in an import statement of a file, `from jmeta import x` as jmeta.x."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "jmeta":
            yield from (f"jmeta.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def layer(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_no_file_is_called_src_utils_or_base():
    names = {part for path in MODULES for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not {"_src", "utils", "base"} & names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    if layer(path) in FREE:
        return
    allowed = ALLOWED[layer(path)]
    if path.name == "__init__.py":
        allowed = (*allowed, layer(path))  # a package's face re-exports its files
    for name in imported(path):
        if name.startswith("jmeta"):
            assert name.split(".")[1] in allowed, f"{path} imports {name}"
        assert name.split(".")[0] not in FORBIDDEN.get(layer(path), ()), f"{path} imports {name}"


def test_types_knows_jax_and_the_standard_library_alone():
    packages = {name.split(".")[0] for name in imported(ROOT / "types.py")}
    assert packages <= {"jax", *sys.stdlib_module_names}


def test_each_learner_is_a_file_with_a_factory_of_its_name():
    files = {path.stem for path in (ROOT / "learners").glob("*.py")} - {"__init__"}
    assert files == set(jmeta.learners.__all__)
    for name in files:
        assert getattr(jmeta.learners, name).__module__ == f"jmeta.learners.{name}"


def test_importing_jmeta_needs_nothing_heavy_and_starts_no_device():
    heavy = {"tensorflow_datasets", "matplotlib", "PIL", "array_record", "tensorflow", "orbax", "tyro"}
    heavy |= {"flax.nnx", "tensorboardX", "filelock"}
    program = f"import sys; sys.modules.update(dict.fromkeys({heavy})); import jmeta, jax"  # None there is no module
    program += "; jax.config.update('jax_num_cpu_devices', 3); assert len(jax.devices()) == 3"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_every_public_name_is_documented():
    for module in (jmeta, jmeta.learners, jmeta.models, jmeta.data, jmeta.functional):
        for name in module.__all__:
            written = getattr(module, name).__doc__ or ""
            assert written.strip(), name
            assert not written.startswith(f"{name}("), f"{name} has what Python writes for a tuple of names"
