# The two commands of the README are `make demo` and `make test`. Both make `.venv` and install into
# it what they need; a second call installs nothing, and needs no network.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test check clean

help: ## Show this
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## From a simulated hospital's FHIR export to readmission risk
	$(BIN)/python benchmarks/demo.py --out demo

# What `check` has just run is not run again as a test. Two processes: most tests use one core.
test: check ## Lint, types, import contracts and all tests
	$(BIN)/python -m pytest -n 2 --dist worksteal --deselect tests/test_house.py::test_a_tool_finds_nothing

check: $(VENV)/.installed-dev ## Lint, types and import contracts only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

clean: ## Remove the environment, the demo and all caches
	rm -rf $(VENV) demo build dist tsfm.egg-info .pytest_cache .ruff_cache .hypothesis
	rm -rf .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "Install your system's venv package for $(PYTHON) first"; exit 1; }

NATIVE := $(wildcard tsfm/kernels/native/*)

# What the tests need includes what the demo needs, so installing it serves both.
$(VENV)/.installed-dev: pyproject.toml $(NATIVE) | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed: pyproject.toml $(NATIVE) | $(BIN)/python
	$(PIP) -e '.[baselines]'
	@touch $@
