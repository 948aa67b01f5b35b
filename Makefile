.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos check format bench lock clean

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
READY := $(VENV)/.ready

help:  ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(READY)  ## Create .venv and install the locked requirements (done by the others when needed)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)  ## From spoken phrases and sounds to a trained, evaluated, answering model (under 5 minutes)
	$(BIN)/salmonn demo

test: $(READY)  ## Run all tests
	$(BIN)/pytest --numprocesses 2

check: $(READY)  ## Formatting, lint and strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)  ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## Run the benchmarks (results: benchmarks/RESULTS.md)
	$(BIN)/python -m benchmarks.encoders
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.pipeline

lock: $(READY)  ## Pin pyproject.toml's requirements again
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade \
		--generate-hashes --no-emit-index-url --no-annotate --custom-compile-command 'make lock' -o requirements.lock

chaos: $(READY)  ## Extraction and training while machines, jobs, disks and stores fail (some forty minutes)
	$(BIN)/pytest -n0 -s -m chaos tests/chaos

clean:  ## Remove the environment and the demo's output
	rm -rf $(VENV) demo
