PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test contract test-all ratios notebooks lint bench clean

# The set-up that every target shares: a virtual environment with the package and its tools.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/jmeta demo

# Without most of XLA's optimisations, which take long and are not what is tested; `test-all` leaves them on
# (docs/decisions/0008-compilation-in-tests.md).
QUICK_TESTS = JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest -m 'not long' -n 2 --dist worksteal

test: $(VENV)/.installed lint
	$(QUICK_TESTS)

# What every learner promises, and the functions it stands on.
contract: $(VENV)/.installed
	$(QUICK_TESTS) tests/test_contract.py tests/functional

test-all: $(VENV)/.installed lint
	$(BIN)/python -m pytest -n 2

# How fast second order and jmeta are beside first order and plain JAX, for optimised code.
ratios: $(VENV)/.installed
	$(BIN)/python -m pytest tests/benchmarks/test_ratios.py

# Runs the notebooks from top to bottom, one after another since one of them measures times;
# `OVERWRITE=--overwrite` keeps what they print and draw.
notebooks: $(VENV)/.installed
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 $(OVERWRITE) notebooks

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# jmeta beside its peers; the CPU build of PyTorch is enough. `OUT=/tmp/peers` writes the results there, not over the
# committed ones.
bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m benchmarks.peers $(addprefix --out ,$(OUT))

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache
