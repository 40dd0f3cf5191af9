# make help lists the targets. No package index is named here: pip's own configuration decides where packages come from.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
# Options for the installation of torch alone, say an index with CPU builds.
TORCH_PIP_ARGS ?=
# More options for `make run` and the test targets: make run ARGS="seed=1", make test ARGS="tests/envs -x".
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One thread for each worker: torch would otherwise start as many as there are cores in every one of them. Bytecode is
# kept even where the shell forbids it: the type-checked sources take a worker ten seconds to compile.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)
ELSEWHERE := not gpu and not browser

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile

.PHONY: setup
setup: $(STAMP)  ## create .venv with what CI runs; nothing to do if pyproject.toml and constraints.txt have not changed

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("worldmtp needs Python 3.11 or later, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH_PIP_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.PHONY: run
run: setup  ## the whole idea, small: SFT, PPO with imagination, held-out evaluation, analysis
	$(BIN)/worldmtp train experiment=quickstart $(ARGS)

.PHONY: test
test: setup  ## the default suite
	$(PYTEST) -m "not slow and $(ELSEWHERE)" $(ARGS)

# The folders left out start runs or train.
.PHONY: test-fast
test-fast: setup  ## each test once, with its first parameters, but for those that start runs or train
	$(PYTEST) -m "not slow and $(ELSEWHERE)" --one-of-each \
	  $(addprefix --ignore=tests/,cli golden post_training studies training) $(ARGS)

.PHONY: test-slow
test-slow: setup  ## the tests that train or build something
	$(PYTEST) -m "slow and $(ELSEWHERE)" $(ARGS)

.PHONY: test-browser
test-browser: setup  ## the tests that look at pages with headless Chromium
	$(BIN)/python -m pytest -m browser $(ARGS)

.PHONY: lint
lint: setup  ## lint, format, types, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

.PHONY: format
format: setup  ## format, and apply the lint fixes that are safe
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: docs
docs: setup  ## build the pages and the API reference into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

.PHONY: wheel-test
wheel-test: setup  ## build, install in a clean environment, run the default suite there from another directory
	PYTHON="$(PYTHON)" BUILDER="$(BIN)/python" TORCH_PIP_ARGS="$(TORCH_PIP_ARGS)" WORKERS="$(WORKERS)" .ci/wheel-test

.PHONY: clean
clean:  ## remove the environment, caches and builds; keeps runs/
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find worldmtp envs agents configs tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
