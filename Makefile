# Local habits in one place. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The oldest Ray that pyproject.toml admits, and what is run on it: all that imports Ray.
OLDEST_RAY := 2.48
OLDEST_LOCK := tests/requirements-ray-$(OLDEST_RAY).lock
OLDEST_VENV := .venv-ray-oldest
RAY_TESTS := tests/unit tests/types tests/docs tests/ray

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-matrix test-oldest-ray parity chaos lint types format lock bench bench-sizes bench-storage clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: $(VENV)/.ready ## Create .venv with the locked dependencies and this package

$(VENV)/.ready: requirements.lock
$(OLDEST_VENV)/.ready: $(OLDEST_LOCK)

$(VENV)/.ready $(OLDEST_VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "ray-workflows needs CPython 3.10 or newer; $(PYTHON) is older. Use make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $(filter %.lock,$^)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

quickstart: setup ## Run the examples and the main job: a pipeline that survives kill -9
	$(BIN)/python examples/quickstart/main.py

# Processes that share the tests out, for 2 processors: what tests wait for takes none. 0: this one
# alone.
WORKERS ?= 3

test: setup ## Run all tests, or TESTS="tests/cli -k name"
	$(BIN)/python -m pytest -n $(WORKERS) $(TESTS)

test-matrix: setup test-oldest-ray ## Run the tests that need Ray on its oldest supported release and on the newest
	$(BIN)/python -m pytest -n $(WORKERS) $(RAY_TESTS)

test-oldest-ray: $(OLDEST_VENV)/.ready ## Run the tests that need Ray on its oldest supported release
	@# The Train that our example is for was there, and not yet the default.
	RAY_TRAIN_V2_ENABLED=1 $(OLDEST_VENV)/bin/python -m pytest -n $(WORKERS) $(RAY_TESTS)

parity: setup ## Compare with ray.workflow 2.47.1, which is installed into .venv-parity
	$(BIN)/python -m pytest tests/parity

# By hand for an hour: make chaos STORAGE=postgres SECONDS=3600 SEED=7
STORAGE ?= sqlite postgres
SECONDS ?= 40
SEED ?= 1

chaos: setup ## Kill and stop parts of real clusters at random, then check what the README promises
	$(BIN)/python -m tests.chaos --seconds $(SECONDS) --seed $(SEED) --storage $(STORAGE)

lint: setup ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## Check types
	$(BIN)/mypy

format: setup ## Format the code
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

COMPILE := uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 \
	--no-header --no-annotate --upgrade

lock: ## Pin the newest releases, with the newest and with the oldest Ray (needs uv)
	$(COMPILE) -o requirements.lock
	@# Ray Serve of that time can't serialize the apps of a newer FastAPI, nor read a newer protobuf.
	printf 'ray==$(OLDEST_RAY).0\nfastapi<0.117\nprotobuf<7\n' | $(COMPILE) - -o $(OLDEST_LOCK)

PARITY_READY := .venv-parity/requirements-2.47.1.lock
DBOS_READY := .venv-dbos/requirements-dbos.lock

$(PARITY_READY): tests/parity/requirements-2.47.1.lock
$(DBOS_READY): benchmarks/peers/requirements-dbos.lock

$(PARITY_READY) $(DBOS_READY):
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@cp $< $@

# What can't be installed is reported as missing. BENCH=--quick shows that the benchmark works.
BENCH ?= --rounds 5 --json docs/benchmarks.json --markdown docs/benchmarks.md

bench: setup ## Compare with plain Ray, ray.workflow and DBOS; writes docs/benchmarks.md
	-@$(MAKE) --no-print-directory $(PARITY_READY)
	-@$(MAKE) --no-print-directory $(DBOS_READY)
	$(BIN)/python benchmarks/compare.py --commit "$$(git describe --always --dirty)" $(BENCH)

bench-sizes: setup ## Run the sizes it must take: chain, ladder, fan-out, loop
	$(BIN)/python benchmarks/sizes.py

# Of the storages alone. BENCH_STORAGE="--only commits --rounds 8" for a part, or a short run.
BENCH_STORAGE ?= --markdown docs/benchmarks-storage.md

bench-storage: setup ## Compare every storage with its raw store; writes docs/benchmarks-storage.md
	$(BIN)/python benchmarks/storage.py $(BENCH_STORAGE)

clean: ## Remove the environments and caches
	rm -rf $(VENV) .venv-* .pytest_cache .mypy_cache .ruff_cache build dist src/*.egg-info
