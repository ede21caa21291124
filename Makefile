# `make help` lists what there is. PYTHON chooses the interpreter that .venv is made from (3.11 to 3.13).
PYTHON ?= python3
BIN := .venv/bin
# Tests share the cores; each JAX process is told to be content with what it gets.
TEST_PROCESSES ?= 2

.DEFAULT_GOAL := help
.PHONY: help test test-all lint format clean

help: ## List the targets.
	@grep -hE '^[a-zA-Z_.-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

.venv: pyproject.toml ## Create the virtual environment with everything for training and tests (CPU).
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip || { rm -rf .venv; exit 1; }
	$(BIN)/python -m pip install --quiet --editable '.[dev]' || { rm -rf .venv; exit 1; }
	@touch .venv

test: lint ## Lint, then run the fast tests (at most 15 minutes on two cores).
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) -m "not slow"

test-all: lint ## Lint, then run all tests, slow ones too (at most 60 minutes on two cores).
	$(BIN)/python -m pytest -n $(TEST_PROCESSES)

lint: .venv ## Check style (ruff) and types (mypy).
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv ## Bring all code into ruff's format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the virtual environment and caches; data, runs and plugins stay.
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info
