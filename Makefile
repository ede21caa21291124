# `make help` lists the targets. PYTHON is the interpreter for .venv (3.11 to 3.13).
PYTHON ?= python3
BIN := .venv/bin
# Test processes that run at the same time.
TEST_PROCESSES ?= 2

# make render-shards CONFIG=configs/render_surge_simple.py OUTPUT=data/surge_simple/shards SHARDS=0-11
CONFIG ?= configs/render_dexed.py
OUTPUT ?= data/$(patsubst render_%,%,$(basename $(notdir $(CONFIG))))/shards
SHARDS ?= 0-11
SAMPLES_PER_SHARD ?= 10000
SEED ?= 0
# make bench BENCH_CONFIG=configs/flow_100k.py BENCH=build/bench-100k
BENCH_CONFIG ?= configs/quickstart.py
BENCH ?= build/bench
# make bench-full FULL=build/bench-h200
FULL ?= build/bench-full
FULL_STEP = step --config=configs/important.py --steps=20
FULL_K_OSC = k_osc --config=configs/k_osc.py:k=16 --steps=500
BENCHMARK = $(BIN)/python -m scripts.benchmarks
measured = $(BENCHMARK).$(2) --json=$(FULL)/$(1).json || echo $(1) >> $(FULL)/failed
.PHONY: help quickstart surge-xt render-shards bench bench-full test test-all lint format clean

help: ## List the targets.
	@grep -hE '^[a-zA-Z_./-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

.venv: pyproject.toml ## Create the virtual environment, with all that training on a CPU needs.
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip || { rm -rf .venv; exit 1; }
	$(BIN)/python -m pip install --quiet --editable . || { rm -rf .venv; exit 1; }
	@touch .venv

# Order-only: a file made in .venv makes the folder look newer than the file.
.venv/dev: pyproject.toml | .venv ## Add all extras, and the tools of the tests.
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch .venv/dev

.venv/dexed: pyproject.toml | .venv ## Add Dexed (GPL-3).
	$(BIN)/python -m pip install --quiet --editable '.[dexed]'
	@touch .venv/dexed

quickstart: .venv/dexed ## Answer sounds with a .syx bank for the DX7, then train a model (3 minutes on 2 cores).
	$(BIN)/python scripts/quickstart.py

surge-xt: ## Fetch the Surge XT plugin (GPL-3) into plugins/, without root.
	sh scripts/install_surge_xt.sh

render-shards: .venv/dev ## Render a data set: CONFIG, OUTPUT, SHARDS, SAMPLES_PER_SHARD, SEED, WORKERS.
	$(BIN)/python -m data_pipeline.render_shards --config=$(CONFIG) --output=$(OUTPUT) --shards=$(SHARDS) \
		--samples_per_shard=$(SAMPLES_PER_SHARD) --seed=$(SEED) $(if $(WORKERS),--workers=$(WORKERS))

bench: .venv/dev ## Measure step, sampler, loader and renderer at small size (3 minutes, 2 cores): tables, and JSON in BENCH.
	mkdir -p $(BENCH)
	$(BENCHMARK).step --config=$(BENCH_CONFIG) --json=$(BENCH)/step.json
	$(BENCHMARK).sampler --config=$(BENCH_CONFIG) --rows=128 --json=$(BENCH)/sampler.json
	$(BENCHMARK).loader --config=$(BENCH_CONFIG) --rows=2048 --batches=2 --json=$(BENCH)/loader.json
	$(BENCHMARK).renderer --config=$(CONFIG) --rows=64 --workers=1,2 --json=$(BENCH)/render.json

# The most important measurements come first; if one fails, the others still run. It uses .venv as it is: install
# requirements-gpu.txt or requirements-tpu.txt there, and PyTorch for the last one. BIN names another environment.
bench-full: ## Measure an accelerator with the base flow at full size: tables, and JSON in FULL.
	@$(BIN)/python -c "import jax; exit('error: there is no accelerator' if jax.default_backend() == 'cpu' else 0)"
	rm -rf $(FULL)
	mkdir -p $(FULL)
	$(call measured,run,run --config.data.cache=device --config.profile=60:65 --workdir=$(FULL)/run)
	$(call measured,step,$(FULL_STEP))
	$(call measured,step-no-remat,$(FULL_STEP) --config.train.remat=none)
	$(call measured,step-xla,$(FULL_STEP) --config.attention=xla)
	$(call measured,sampler,sampler --config=configs/important.py --config.sampling.solver=rk4 \
		--config.sampling.steps=100 --config.sampling.batch_size=500 --repeats=1 --rows=10000)
	$(call measured,k_osc,$(FULL_K_OSC))
	$(call measured,k_osc-bf16,$(FULL_K_OSC) --config.compute_dtype=bfloat16)
	$(call measured,run-from-files,run --config.data.workers=8 --steps=300)
	$(call measured,torch,beside_torch --config=configs/important.py --steps=20)
	@test ! -e $(FULL)/failed || { echo "error: not measured, see above:" $$(cat $(FULL)/failed) >&2; exit 1; }

test: lint ## Lint, then run the fast tests.
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile -m "not slow"

test-all: lint ## Lint, then run all tests, slow ones too.
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal

lint: .venv/dev ## Check style (ruff) and types (mypy).
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/dev ## Format all code with ruff.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the virtual environment and caches; data, runs and plugins stay.
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info
