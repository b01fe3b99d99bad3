"""Strict settings for every test, and the tasks that many share."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

OMNIGLOT = Path(__file__).parents[2] / "shared" / "data" / "omniglot"


@pytest.fixture
def x64():
    """Sixty-four bits, where exactness is tested."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def omniglot_files():
    """The folder with `archives/` and `tfds/`: $OMNIGLOT, or beside the checkout."""
    folder = Path(os.environ.get("OMNIGLOT", OMNIGLOT))
    if not folder.is_dir():
        pytest.skip(f"Omniglot is not in {folder}")
    return folder
