# Every target sets up what it needs: a virtual environment in .venv, made anew when pyproject.toml, constraints.txt,
# the native engine's source or the list of modules change. `make` alone lists the targets.
PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MODULES := $(VENV)/.modules
UPSLOPE := $(BIN)/upslope
PYTEST := $(BIN)/python -m pytest -n $(WORKERS)
REST := reference or faults or docs

.DEFAULT_GOAL := help
.PHONY: help setup demo flappy language-demo check format test test-rest test-all learning soak clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## the virtual environment in .venv

demo: $(READY) ## train PPO on Flappy Bird for at most five minutes, then watch it
	$(UPSLOPE) demo

flappy: $(READY) ## the same, for longer
	$(UPSLOPE) demo --long

language-demo: $(READY) ## GRPO on addition beside its control, and DPO to GRPO against the exact optimum
	$(BIN)/python benchmarks/language_frontier.py
	$(BIN)/python benchmarks/language_addition.py

check: $(READY) ## lint, format, types, imports and the fast tests, in about 90 seconds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(PYTEST) -m "not slow and not ($(REST))"

format: $(READY) ## put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(READY) ## the whole suite a user needs, in under ten minutes
	$(PYTEST) -m "not ($(REST))"

test-rest: $(READY) ## the rest: equality with other libraries, faults, documentation
	$(PYTEST) -m "$(REST)"

test-all: test test-rest ## every test

learning: $(READY) ## train every recipe on five seeds and print the table of results
	$(BIN)/python benchmarks/learning.py

soak: $(READY) ## train several agents for 15 minutes under random kills, stops, full disks and failing environments
	$(BIN)/python benchmarks/soak.py

clean: ## remove .venv and what the tools leave; runs/ stays
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

LIST_MODULES := find src/upslope -name '*.py' | LC_ALL=C sort

# An editable install keeps a list of the modules, which a pull that moves one makes wrong.
.PHONY: FORCE
$(MODULES): FORCE
	@mkdir -p $(VENV) && { $(LIST_MODULES) | cmp -s - $@ || $(LIST_MODULES) > $@; }

$(READY): pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/native/*) $(MODULES)
	@command -v $(PYTHON) >/dev/null || { echo "Upslope needs Python 3.11 or newer, and there is no '$(PYTHON)' here. Name yours: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Upslope needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "'$(PYTHON)' has no venv module. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@$(LIST_MODULES) > $(MODULES)
	@touch $(READY)
