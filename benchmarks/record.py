"""Results of benchmarks: where they lie, by what they were made, and how they are written."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from jmeta.files import to_json, write_whole

RESULTS = Path(__file__).parent / "results"


def provenance() -> dict[str, Any]:
    """By which code and versions and on what machine a result is made; asked for before it is, lest the code change."""
    return {
        "commit": commit(),
        "versions": {package: version(package) for package in ("jax", "jaxlib", "flax", "optax", "numpy")},
        "python": platform.python_version(),
        "machine": machine(),
    }


def commit() -> str | None:
    """Of the clone that this runs in, "-dirty" behind it where code is not as committed.

    Without Git it is what JMETA_COMMIT says, for a copy on a machine that has no clone, or None.
    """
    found, changed = _git("rev-parse", "--short=12", "HEAD"), _git("status", "--porcelain", "--", "../jmeta", "*.py")
    if found is None or changed is None:
        return os.environ.get("JMETA_COMMIT")
    return f"{found}-dirty" if changed else found


def _git(*arguments):
    """What the command prints, in this folder; None if it fails."""
    if shutil.which("git") is None:
        return None
    command, here = ["git", *arguments], Path(__file__).parent
    found = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


def machine() -> dict[str, Any]:
    """What it ran on; of the processor the cores that this process may use."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "processor": processor(),
        "cores": usable_cores(),
    }


def processor() -> str:
    """Its model, where Linux tells, or else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def device_name() -> str:
    """Of the device, as in the names of result files: "cpu", or what an accelerator calls itself."""
    device = jax.devices()[0]
    return "cpu" if device.platform == "cpu" else re.sub("[^a-z0-9]+", "-", device.device_kind.lower()).strip("-")


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def save(result: Mapping[str, Any], path: Path) -> None:
    """Writes a result, whole or not at all, with null for numbers that are not finite."""
    write_whole(path, to_json(result, indent=1) + "\n")
