# make demo | test | lint | bench. Each creates .venv and installs what it needs, once; Linux with Python 3.11 is enough.
# Options:  make demo PYTHON=/path/to/python3.11   a certain interpreter
#           make demo TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"   the small CPU build of torch

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint format bench clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH_ARGS ?=
PYTEST_ARGS ?=
# tests that run at a time; one core and about 1.5 GB each
JOBS ?= 2
# the first interpreter that runs and is at least 3.11
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

help:
	@echo "make demo      segment a phantom volume and a georeferenced scene, write a report"
	@echo "make test      quick tests        make test-all  with the slow ones"
	@echo "make lint      ruff, mypy, import contracts        make format  rewrite the layout"
	@echo "make bench     the benchmarks (hours)"

install: $(STAMP)

# pip runs again only when what is asked for has changed; torch first, so that one build of it is settled before the rest
$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then echo "No Python >= 3.11 found; install one or call make with PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): torch, then samgraft with its test tools (a few minutes, once)"
	$(BIN)/python -m pip install --quiet $(TORCH_ARGS) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -e '.[test]' -c constraints.txt
	@touch $@

demo: export OMP_NUM_THREADS ?= 1
demo: $(STAMP)
	$(BIN)/samgraft demo

test: export OMP_NUM_THREADS ?= 1
test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow and not gpu and not network" $(PYTEST_ARGS)

test-all: export OMP_NUM_THREADS ?= 1
test-all: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) -m "not gpu and not network" $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PYTHONPATH=.src $(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks.zero_shot
	$(BIN)/python -m tests.benchmarks.first_slice
	$(BIN)/python -m tests.benchmarks.encoder
	$(BIN)/python -m tests.benchmarks.prompts
	$(BIN)/python -m tests.benchmarks.pipeline
	$(BIN)/python -m tests.benchmarks.cache
	$(BIN)/python -m tests.benchmarks.memory
	$(BIN)/python -m tests.benchmarks.graft_costs
	$(BIN)/python -m tests.benchmarks.grafts
	$(BIN)/python -m tests.benchmarks.prompters
	$(BIN)/python -m tests.benchmarks.quantized

clean:
	rm -rf $(VENV) dist build
