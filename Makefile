# Every command of the project. `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
PORT ?= 5000
DOCS_PORT ?= 8000
VENV := .venv
READY := $(VENV)/.installed
BIN := $(CURDIR)/$(VENV)/bin
FUZZER := $(shell sed -n 's/^fuzz = \["\(.*\)"\]$$/\1/p' pyproject.toml)
BUILDER := $(shell sed -n 's/^release = \["\(.*\)"\]$$/\1/p' pyproject.toml)
AUDITOR := $(shell sed -n 's/^audit = \["\(.*\)"\]$$/\1/p' pyproject.toml)
TORCH := $(shell sed -n 's/^ *"\(torch==[^"]*\)",*$$/\1/p' pyproject.toml)

export PATH := $(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_DISABLE_TELEMETRY := 1
export DVC_NO_ANALYTICS := 1
export NO_MKDOCS_2_WARNING := 1  # the site is built with the pinned 1.6

.PHONY: help install demo repro retrain remote refit study sweep test check format figures fuzz audit dist bench gpu chaos ui docs docs-serve notebook image clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install: $(READY) ## make .venv with the pinned versions (the other targets do it by themselves)

# torch first: with an NVIDIA driver the default CUDA build; without one the small CPU build, if its index answers
# (pip takes a locally configured CPU wheel otherwise).
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; choose one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "Cannot make a virtual environment. On Debian/Ubuntu: sudo apt install python3-venv"; exit 1; }
	@echo "installing into $(VENV): some minutes the first time"
	@index=https://download.pytorch.org/whl/cpu; \
	if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then index=; \
	elif ! $(BIN)/python -c "import urllib.request as u; u.urlopen('$$index/torch/', timeout=5)" 2>/dev/null; then index=; fi; \
	$(BIN)/pip install -qq --disable-pip-version-check $(TORCH) $${index:+--extra-index-url "$$index"}
	@$(BIN)/pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY) ## the whole pipeline on the simulated shop, in .demo/ (minutes)
	@rl4rec workspace .demo
	@cd .demo && OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} dvc repro  # models so small that a second thread only waits
	@rl4rec show-comparison --root .demo

repro: $(READY) ## the whole pipeline on Amazon Beauty: only what changed runs again
	@dvc repro
	@rl4rec show-comparison

retrain: $(READY) ## what CI does on new data: pull, run what changed, ask the gate, push (DIR=.demo: another workspace)
	@.ci/retrain $(DIR)

remote: $(READY) ## name the DVC remote of this checkout, not committed (make remote URL=s3://bucket/path)
	@dvc remote add --local --default --force store '$(URL)'

refit: $(READY) ## all stages again with the validation targets as feedback too, in .refit/; writes metrics/refit
	@rl4rec workspace .refit --overrides refit.yaml
	@cd .refit && $(if $(RL4REC_DATA_HOME),RL4REC_DATA_HOME=$(abspath $(RL4REC_DATA_HOME))) dvc repro
	@rl4rec collect-refit

study: $(READY) ## PPO, GRPO and the control over seeds and settings; writes metrics/study.json (an hour and more)
	@python benchmarks/study.py

sweep: $(READY) ## search settings of one stage by its validation (sweep.yaml); again: goes on (DIR=.demo: another workspace)
	@rl4rec sweep $(if $(DIR),--root $(DIR))

test: $(READY) ## all tests, a process a core (some: make test TESTS="tests/model/test_policy.py -n 0")
	@pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(TESTS)

check: $(READY) ## style, types, import order, dvc.yaml against the code, the README against the results
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	rl4rec check-params > /dev/null
	rl4rec check-dvc
	python benchmarks/readme.py --check

format: $(READY) ## format the code, fix what can be fixed
	ruff check --fix .
	ruff format .

figures: $(READY) ## fill the READMEs' tables, list of files and picture in from metrics/, benchmarks/results/ and the code
	@python benchmarks/readme.py

fuzz: $(READY) ## coverage-guided fuzzing of all readers, FUZZ_SECONDS (60) each (some: make fuzz FUZZ="csv params")
	@pip install -qq --disable-pip-version-check '$(FUZZER)'
	@python benchmarks/fuzz.py $(FUZZ)

audit: $(READY) ## known vulnerabilities of the installed versions (needs pypi.org)
	@test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && \
		.venv-audit/bin/pip install -qq --disable-pip-version-check '$(AUDITOR)'; }
	@.ci/audit .venv-audit/bin/pip-audit "$$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

dist: $(READY) ## the sdist and the wheel of this checkout, in dist/ (needs PyPI)
	@rm -rf build dist
	@test -x .venv-release/bin/python || $(PYTHON) -m venv .venv-release
	@.venv-release/bin/pip install -qq --disable-pip-version-check '$(BUILDER)'
	@.venv-release/bin/python -m build

bench: $(READY) ## speed and memory, each against a named peer, an hour in all (some: make bench BENCH="evaluate sft")
	@for name in $(or $(BENCH),prepare evaluate sft rl accuracy serve hostile); do echo "== $$name"; python benchmarks/$$name.py || exit 1; done

gpu: ## what only a GPU can show, in eight minutes; needs no installation (docs/scale.md); writes benchmarks/results/gpu-*.json
	@if [ -x $(BIN)/python ]; then python=$(BIN)/python; else python=$(PYTHON); fi; $$python benchmarks/gpu.py $(GPU)

chaos: $(READY) ## kill every stage at random moments and start it again: the result must be the same to the last bit
	@OMP_NUM_THREADS=1 python benchmarks/chaos.py

ui: $(READY) ## the MLflow UI of mlflow.db on 127.0.0.1 (make ui PORT=5001; the demo's: make ui DIR=.demo)
	@echo 'open http://127.0.0.1:$(PORT)/#/experiments/1/runs?workflowType=machine_learning (docs/mlflow.md is the guide)'
	@cd $(or $(DIR),.) && MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
		mlflow ui --host 127.0.0.1 --port $(PORT) --workers 1 --backend-store-uri sqlite:///mlflow.db

docs: $(READY) ## build the guides as a site into site/, links checked
	@mkdocs build --strict --quiet
	@echo "site/index.html: make docs-serve shows it on http://127.0.0.1:$(DOCS_PORT)"

docs-serve: $(READY) ## the guides on http://127.0.0.1:8000, built anew as they are written (DOCS_PORT=8001)
	@mkdocs serve --dev-addr 127.0.0.1:$(DOCS_PORT)

notebook: $(READY) ## run examples/first_hour.ipynb anew and keep its outputs
	@python -m tests.test_notebook

image: ## build the Dockerfile without an engine and run the demo in it, as root (sudo make image; .ci/image says how)
	@.ci/image

clean: ## remove the workspaces of demo, refit and study, the sweeps and all caches (not .venv, data, models or mlflow.db)
	rm -rf .demo .refit .study .sweep .fuzz .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist site
