# Everything a user types. `make` alone explains itself.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TLR := $(BIN)/tlresearch
LOCK := requirements/lock.txt
# uv as it is found, else one of our own under .uv
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
# Hard links save minutes and gigabytes where cache and checkout share a disk; uv copies where they do not.
export UV_LINK_MODE ?= hardlink

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-networks test-pages fuzz audit wheel chaos bench gpu lint docs format run sweep worker reproduce reproduce-all verify predict register serve compare curve domain-shift export report rank inspect ui sync lock clean

help:  ## Show this help
	@printf 'usage: make TARGET [EXP=…] [SWEEP=…] [ARGS="key=value …"]\n\n'
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.done  ## Install everything into .venv (done by the other targets when needed)

$(VENV)/.done: $(LOCK) pyproject.toml
	@command -v $(UV) >/dev/null 2>&1 \
		|| { $(PYTHON) -m venv .uv 2>/dev/null && .uv/bin/pip install --quiet uv; } \
		|| { rm -rf .uv && curl -LsSf https://astral.sh/uv/install.sh | UV_UNMANAGED_INSTALL=$(CURDIR)/.uv/bin sh; } \
		|| { echo "uv cannot be installed: install python3-venv or curl, or uv itself, and try again" >&2; exit 2; }
	@test -x $(BIN)/python || $(UV) venv --quiet --python '>=3.11' $(VENV)
	@echo "installing the locked packages into $(VENV) (about 6 GB on Linux, a minute or two)"
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode $(LOCK)
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: setup  ## The main job on digits: pretrain, transfer with few labels, sweep, compare (under 90 s)
	$(TLR) demo $(ARGS)

test: setup  ## Run the tests
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not slow and not pages and not networks" $(ARGS)

test-slow: setup  ## Run the tests that start servers, clusters or several ranks
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m slow $(ARGS)

test-networks: setup  ## Take all of some 340 networks apart and compare at every boundary (`make test` has a tenth)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m networks $(ARGS)

test-pages: setup  ## Run every command of the documentation on a little data (ten minutes)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "slow or pages" tests/snippets $(ARGS)

wheel: setup  ## Build the wheel, install it into an empty environment and run it where there is no clone
	.ci/wheel $(UV)

chaos: setup  ## Cause every fault for real, and print what became of it: make chaos ARGS="--only kill --moments 5"
	$(BIN)/python -m tests.chaos --write docs/faults.md $(ARGS)

BENCHMARKS := startup full_finetune tracking_overhead mixed_sweep growth head_only_sweep depth_cost
bench: setup  ## Measure every claim about speed, or one: make bench BENCHMARKS=mixed_sweep (needs a quiet machine)
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name --write $(ARGS) || exit 1; done

gpu: setup  ## On a GPU: is it right, is it fast? Tests and benchmarks into gpu-results/ (8 minutes; tiny without a GPU)
	$(BIN)/python -m benchmarks.gpu $(ARGS)

fuzz: setup  ## Feed thousands of broken configs and files to every reader (a few minutes)
	TLRESEARCH_FUZZ=thorough $(BIN)/python -m pytest --numprocesses auto tests/fuzz $(ARGS)

audit: setup  ## Look the locked packages up among known vulnerabilities (needs the network)
	@test -x .audit/bin/pip-audit || { $(UV) venv --quiet --clear --python '>=3.11' .audit \
		&& $(UV) pip sync --quiet --python .audit/bin/python --require-hashes requirements/audit.txt; }
	@.audit/bin/python .ci/audit.py .audit/bin/pip-audit $(LOCK)

docs: setup  ## Build the documentation site into site/: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "site/index.html"

lint: setup  ## Check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

run: setup  ## Run one experiment: make run EXP=hymenoptera/linear_probe ARGS="optimizer.lr=3e-3"
	$(TLR) run $(EXP) $(ARGS)

sweep: setup  ## Run or continue a sweep: make sweep SWEEP=hymenoptera/lr_x_unfreeze_depth (WORKERS=4, LAUNCHER=ray)
	$(TLR) sweep $(SWEEP) $(if $(WORKERS),workers=$(WORKERS)) $(if $(LAUNCHER),launcher=$(LAUNCHER)) $(ARGS)

worker: setup  ## Join a sweep from this machine: make worker SWEEP=… ARGS="storage=postgresql://…"
	$(TLR) worker $(SWEEP) $(ARGS)

reproduce: setup  ## Run a published experiment and compare its numbers (EXP=…), or repeat a run (RUN=id)
	$(TLR) reproduce $(or $(RUN),$(EXP)) $(ARGS)

reproduce-all: setup  ## Every published experiment whose data and weights are here; writes REPRODUCED.md
	$(TLR) reproduce --all $(ARGS)

verify: setup  ## Check a recorded run without training: make verify RUN=3f2a9c1b
	$(TLR) verify $(RUN) $(ARGS)

export: setup  ## Write a run's model as ONNX and more, checked: make export RUN=3f2a9c1b TO="onnx pt2" ARGS="--int8 static"
	$(TLR) export $(RUN) $(if $(TO),--to $(TO)) $(ARGS)

report: setup  ## Write one HTML page about a run (RUN=id) or a sweep (SWEEP=…)
	$(TLR) report $(or $(RUN),$(SWEEP)) $(ARGS)

predict: setup  ## Predict raw files by a run's model: make predict RUN=3f2a9c1b FILES="photos/"
	$(TLR) predict $(RUN) $(FILES) $(ARGS)

register: setup  ## Register a run's model by a name: make register RUN=3f2a9c1b NAME=ants_bees ARGS="--alias champion"
	$(TLR) register $(RUN) $(NAME) $(ARGS)

serve: setup  ## Serve a model on 127.0.0.1: make serve MODEL=3f2a9c1b (or models:/ants_bees@champion)
	$(TLR) serve $(MODEL) $(ARGS)

compare: setup  ## Compare the trials of a sweep (SWEEP=…) or runs (RUNS="id id …")
	$(TLR) compare $(if $(SWEEP),--sweep $(SWEEP)) $(RUNS) $(ARGS)

curve: setup  ## Accuracy over labels per class and schedule: make curve EXP=hymenoptera/linear_probe ARGS="--labels 1,5"
	$(TLR) curve $(EXP) $(ARGS)

domain-shift: setup  ## All pairs of Office-Caltech10, and their tables in docs/domain_shift.md
	$(TLR) shift office_caltech10/all_pairs --write docs/domain_shift.md $(ARGS)

rank: setup  ## Rank pretrained backbones without training: make rank EXP=hymenoptera/linear_probe BACKBONES=all-small
	$(TLR) rank $(EXP) $(if $(BACKBONES),--backbones $(BACKBONES)) $(ARGS)

inspect: setup  ## Show a backbone's stages, an experiment's plan (EXP=…), or what became of a run's stages (RUN=id)
	$(TLR) inspect $(or $(RUN),$(EXP)) $(ARGS)

ui: setup  ## Open the MLflow UI over the recorded runs on 127.0.0.1
	$(TLR) ui $(ARGS)

sync: setup  ## Deliver to MLflow what runs recorded while its server was away
	$(TLR) sync $(ARGS)

lock:  ## Resolve the versions anew
	$(UV) pip compile --quiet --universal --all-extras --python-version 3.11 --generate-hashes \
		--no-emit-index-url --custom-compile-command 'make lock' --output-file $(LOCK) pyproject.toml
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --custom-compile-command 'make lock' --output-file requirements/audit.txt requirements/audit.in

clean:  ## Remove the environment and caches, but no result
	rm -rf $(VENV) .uv .audit .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
