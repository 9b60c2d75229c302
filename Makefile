# Every target makes what it needs: `make local-smoke` or `make test` is the only command after a clone.
# PYTHON=python3.12 picks the interpreter; DEVICE=cpu or DEVICE=cuda overrides what is found; WHEELHOUSE=dir installs
# from that folder, without a network.

PYTHON ?= python3
DEVICE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
BIN := .venv/bin
READY := .venv/.ready
PEER := .venv/peer
SMOKE := runs/local-smoke
LOCKS := requirements/cpu.txt requirements/cuda.txt requirements/peer.txt
# Runs that are timed, or whose engines take every core, have the machine to themselves. The other tests go two files at a
# time, and so do those whose processes wait, import or compute on one core for most of the time. Unit tests are last: they
# fill both cores to the end.
PYTEST := $(BIN)/python -m pytest --durations=40 --durations-min=1
PAIRS := -n 2 --dist loadfile --no-loadscope-reorder
NARROW := $(patsubst %,tests/engine/test_%.py,zero recipes_learn experts http_teacher deepspeed_contract vllm_contract \
	adapter mixed_steps failed_runs ray_contract head ray_metrics)
GPU_TESTS = $(if $(filter cuda,$(DEVICE)),,-m "not gpu")

# `make setup` compiles no bytecode: what is imported is compiled once, and kept. Where that is forbidden, every process
# of every run compiles vLLM and torch again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup wheelhouse local-smoke reproduce quick test test-gpu coverage mutants chaos bench lint compiled audit clean FORCE

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1: /p' Makefile

setup: $(READY) ## a .venv with the locked packages, the project and the default model; nothing when done

# A stamp that names another device or folder, or an environment whose interpreter is gone, is no stamp.
ifneq ($(shell $(BIN)/python -c '' 2>/dev/null && cat $(READY) 2>/dev/null),$(DEVICE) $(CURDIR))
$(READY): FORCE
endif
$(READY): pyproject.toml requirements/$(DEVICE).txt requirements/$(DEVICE).hashes.txt requirements/install.sh
	@WHEELHOUSE="$(abspath $(WHEELHOUSE))" bash requirements/install.sh "$(PYTHON)" "$(DEVICE)"

wheelhouse: ## every locked package and the default model in a folder, for `make setup WHEELHOUSE=...` without a network
	@$(PYTHON) requirements/wheelhouse.py collect requirements/$(DEVICE).txt $(DEVICE) $(or $(WHEELHOUSE),wheelhouse-$(DEVICE))

local-smoke: setup ## train the default persona on this machine and print before and after
	@dir=$(SMOKE); [ ! -e $$dir ] || dir=$(SMOKE)-$$(date +%Y%m%d-%H%M%S); \
	exec $(BIN)/edge-opd run cluster/recipes/local-smoke.toml --run-dir $$dir

reproduce: setup ## the published matrix on the default model, arm by arm, and its report; goes on where it was stopped
	$(BIN)/edge-opd reproduce

quick: setup ## lint of the files changed since the last commit, and the unit tests
	@changed=$$(git diff --name-only --diff-filter=d HEAD -- '*.py'; git ls-files --others --exclude-standard -- '*.py'); \
	[ -z "$$changed" ] || { $(BIN)/ruff check $$changed && $(BIN)/ruff format --check $$changed; }
	$(PYTEST) $(PAIRS) tests/unit

test: setup ## lint, then every test; those marked gpu only where there is one
	@$(MAKE) --no-print-directory -j2 lint compiled
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PYTEST) $(PAIRS) $(NARROW) tests/process tests/unit
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PYTEST) $(GPU_TESTS) $(NARROW:%=--ignore=%) tests/engine tests/gpu

test-gpu: setup ## what only a GPU can prove, in about 8 minutes on one card; what was found in runs/gpu.json
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PYTEST) -rs tests/gpu

coverage: setup ## lines and branches that the unit and process tests run; starts no engine
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PYTEST) $(PAIRS) tests/unit tests/process --cov --cov-report=term:skip-covered
	@for name in evidence rollout learner cluster; do \
	echo "$$name $$($(BIN)/python -m coverage report --include="$$name/*" --format=total)%"; done

mutants: setup ## changes to the mask, the batches and the losses that no unit test notices; an hour on 2 cores
	OMP_NUM_THREADS=1 $(BIN)/python -m mutmut run
	$(BIN)/python -m mutmut results

bench: setup $(PEER)/.ready ## ratios within one run, their targets, a table and a file in runs/bench; BASE=rev pairs them with another revision's; 45 minutes on 2 cores
	$(BIN)/python -m tests.bench $(if $(BASE),--base $(BASE))

chaos: setup ## kills a run's Ray, and processes of small runs at random moments; a table and runs/chaos.json; 25 minutes
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PYTEST) tests/chaos
	$(BIN)/python -m tests.chaos

# The benchmarks' peer and what it needs beside the project's packages, apart from them.
$(PEER)/.ready: requirements/peer.hashes.txt $(READY)
	rm -rf $(PEER)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile --no-deps --require-hashes --target $(PEER) -r $<
	touch $@

lint: setup ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy evidence cluster rollout learner tests/bench tests/gpu
	$(BIN)/lint-imports --no-logo

# What every engine imports, compiled while mypy has one core: else the first engines do it, each for itself.
compiled: setup
	@$(BIN)/python -c 'import ray, vllm.v1.engine.async_llm, vllm.v1.worker.gpu_worker, vllm.model_executor.models.llama'

audit: ## known vulnerabilities of every lock (PyPI's advisories); a package without an answer is an error
	@[ -x .venv-audit/bin/pip-audit ] || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install -qq pip-audit; }
	@found=0; for lock in $(LOCKS); do \
		echo "$$lock:"; .venv-audit/bin/pip-audit --strict --disable-pip --no-deps -r $$lock || found=1; \
	done; exit $$found

clean: ## removes caches and build outputs; keeps .venv and runs
	rm -rf build mutants .coverage *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find cluster evidence learner rollout tests -name __pycache__ -type d -prune -exec rm -rf {} +
