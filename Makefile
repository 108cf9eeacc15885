# Every target sets up what it needs: a virtual environment in .venv, filled from the lock with hashes checked.
# Only python3 (3.11 or newer) and make have to be there.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
ARGS ?=
ITEM ?=
FULL ?=
MINUTES ?= 30

.DEFAULT_GOAL := help
.PHONY: help up demo test check bench chaos soak lock format clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

up: $(VENV)/.run ## start everything and print the addresses; Ctrl-C ends it
	$(BIN)/switchyard up $(ARGS)

demo: $(VENV)/.run ## start everything in a folder of its own and fill it with real flights
	$(BIN)/switchyard demo $(ARGS)

test: $(VENV)/.dev ## run every test
	$(BIN)/pytest $(ARGS)

check: $(VENV)/.dev ## format, lint, types, import contracts, then every test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory test

bench: $(VENV)/.dev ## measure start-up and predictions beside peers; ARGS=--quick in three minutes, ARGS=--write into docs/performance.md
	$(BIN)/python -m benchmarks.startup $(ARGS)
	$(BIN)/python -m benchmarks.inference $(ARGS)
	$(BIN)/python -m benchmarks.serving $(ARGS)

chaos: $(VENV)/.dev ## kill real processes, the parent too, and look for what was lost or left over; ITEM=name or number, FULL=1
	$(BIN)/python -m benchmarks.chaos $(if $(ITEM),--item $(ITEM)) $(if $(FULL),--full) $(ARGS)

soak: $(VENV)/.dev ## half of the most load for MINUTES=30: does memory grow, does a request fail
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) $(ARGS)

format: $(VENV)/.dev ## let ruff put the code in order
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the virtual environment and caches; never data
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

lock: $(BIN)/uv ## resolve the versions anew (say why in docs/decisions/0001-versions.md)
	./tools/lock $(BIN)/uv

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Switchyard needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Say which one to use: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu it is a package of its own: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

# One file a set: what stands in the lock is what is installed, and nothing else is.
$(VENV)/.run: requirements.lock pyproject.toml | $(BIN)/uv
	@if [ -e $(VENV)/.dev ]; then $(MAKE) --no-print-directory $(VENV)/.dev; else \
	  echo "Setting up $(VENV) from requirements.lock" && ./tools/install $(BIN) requirements.lock; fi
	@touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(BIN)/uv
	@echo "Setting up $(VENV) from requirements-dev.lock"
	@./tools/install $(BIN) requirements-dev.lock
	@touch $@ $(VENV)/.run
