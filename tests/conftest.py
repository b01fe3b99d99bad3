"""Strict settings for every test, and the tasks that many share."""

import gc
import os
from pathlib import Path

import jax
import pytest
from jax import export
from jax.sharding import AxisType

jax.config.update("jax_numpy_rank_promotion", "raise")
# Traces leave many cycles of small objects; to look for them 70 times as rarely took 1 s of 115 in place of 5.
gc.set_threshold(50_000, 20, 20)


def pytest_configure(config):
    """What holds for the commands that tests start too: compiled functions are kept, for the next run as well."""
    options = {
        "platforms": "cpu",  # also where there is an accelerator
        "num_cpu_devices": 2,  # for what is divided over devices
        "compilation_cache_dir": str(config.cache.mkdir("jax")),
        "persistent_cache_min_compile_time_secs": 0.1,
    }
    for name, value in options.items():
        os.environ[f"JAX_{name.upper()}"] = str(value)
        jax.config.update(f"jax_{name}", value)
    # Where most optimisations are left out, and XLA still has its older way to compile what it fuses: it takes 0.6 of
    # the time (docs/decisions/0008-compilation-in-tests.md).
    if "JAX_DISABLE_MOST_OPTIMIZATIONS" in os.environ and jax.__version_info__ < (0, 11):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"


@pytest.fixture
def x64():
    """Sixty-four bits, where exactness is tested."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def over_two_devices():
    """`(function, in_specs, out_specs)` to the function compiled inside `shard_map`, with an axis "tasks" of two."""
    mesh = jax.make_mesh((2,), ("tasks",), axis_types=(AxisType.Auto,))

    def divided(function, in_specs, out_specs):
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs))

    return divided


@pytest.fixture
def every_product_stored(monkeypatch):
    """Mixed mode stores the products of small networks too, as it does those of large ones."""
    monkeypatch.setattr("jmeta.functional.mixed.LEAST_TERMS", 1)


@pytest.fixture
def as_an_accelerator_would(monkeypatch):
    """`(function, *arguments)` to what the program gives that a TPU would be sent, which is run here on the CPU.

    A GPU's may call a library that is not here, to factorise a matrix; that it can be made is all that is held.
    """

    def run(function, *arguments):
        leaves, structure = jax.tree.flatten(arguments)  # an exported program knows no nodes but Python's
        results = []

        @jax.jit
        def flat(*leaves):
            found, result = jax.tree.flatten(function(*jax.tree.unflatten(structure, leaves)))
            results.append(result)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(jax, "default_backend", lambda: "tpu")
            jax.clear_caches()  # of what was traced for the CPU
            elsewhere = [export.DisabledSafetyCheck.platform()]  # that it runs where it was made for
            program = export.export(flat, platforms=["tpu"], disabled_checks=elsewhere)(*leaves)
            flat.trace(*leaves).lower(lowering_platforms=("cuda",))
        jax.clear_caches()
        return jax.tree.unflatten(results[0], program.call(*leaves))

    return run


@pytest.fixture(scope="session")
def omniglot_files():
    """The folder $OMNIGLOT, with `archives/` and `tfds/`."""
    if not (folder := os.environ.get("OMNIGLOT")):
        pytest.skip("OMNIGLOT names no folder with Omniglot")
    return Path(folder)
