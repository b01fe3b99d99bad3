"""Pytest collects only the timing files of this folder: `pytest benchmarks --benchmark-only`."""


def pytest_ignore_collect(collection_path, config):
    return True if collection_path.suffix == ".py" and not collection_path.name.startswith("test_") else None
