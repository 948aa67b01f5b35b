.DEFAULT_GOAL := help
.PHONY: help setup demo test reference chaos check format bench lock clean

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
READY := $(VENV)/.ready
DEV_READY := $(VENV)/.ready-dev

help:  ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY)  ## Create .venv with what a user needs (the other targets do it themselves)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV_READY): $(READY) requirements-dev.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements-dev.lock
	@touch $@

demo: $(READY)  ## From spoken phrases and sounds to a trained, evaluated, answering model (under 5 minutes)
	$(BIN)/salmonn demo

test: $(DEV_READY)  ## Run all tests; those that need ../shared are skipped where it is not there
	$(BIN)/pytest --numprocesses 2

reference: $(DEV_READY)  ## Run the tests that need the reference numbers and recordings of ../shared
	$(BIN)/pytest --numprocesses 2 -m weights

check: $(DEV_READY)  ## Formatting, lint and strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(DEV_READY)  ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(DEV_READY)  ## Run the benchmarks (results: benchmarks/RESULTS.md)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint requirements-dev.lock --editable '.[bench]'
	$(BIN)/python -m benchmarks.encoders
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.pipeline

LOCK = $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --upgrade --generate-hashes \
	--no-emit-index-url --no-annotate --custom-compile-command 'make lock'

lock: $(READY)  ## Pin pyproject.toml's requirements again
	$(LOCK) --extra build --extra demo --extra dev --extra quantised --extra meteor --extra japanese -o requirements-dev.lock
	$(LOCK) --extra build --extra demo --constraint requirements-dev.lock -o requirements.lock

chaos: $(DEV_READY)  ## Extraction, training and evaluation while machines, jobs, disks and stores fail (an hour and a half)
	$(BIN)/pytest -n0 -s -m chaos -o faulthandler_timeout=0 tests/chaos

clean:  ## Remove the environment and the demo's output
	rm -rf $(VENV) demo
