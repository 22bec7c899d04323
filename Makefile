# Local habits in one place. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test parity lint types format lock bench-sizes bench-objects clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: $(VENV)/.ready ## Create .venv with the locked dependencies and this package

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "ray-workflows needs CPython 3.10 or newer; $(PYTHON) is older. Use make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

quickstart: setup ## Run the examples and the main job: a pipeline that survives kill -9
	$(BIN)/python examples/quickstart/main.py

test: setup ## Run all tests
	$(BIN)/python -m pytest

parity: setup ## Compare with ray.workflow 2.47.1, which is installed into .venv-parity
	$(BIN)/python -m pytest tests/parity

lint: setup ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## Check types
	$(BIN)/mypy

format: setup ## Format the code
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

lock: ## Pin the newest releases (needs uv)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 \
		--no-header --no-annotate --upgrade -o requirements.lock

bench-sizes: setup ## Run the sizes it must take: chain, ladder, fan-out, loop
	$(BIN)/python benchmarks/sizes.py

bench-objects: setup ## Measure object stores and shared directories as storage
	$(BIN)/python benchmarks/storage_objects.py

clean: ## Remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist src/*.egg-info
