# setup · quickstart · test · bench · lint · types · wheel. Each target bootstraps what it needs, into .venv/.

PYTHON ?= python3
RECIPE ?= training/recipes/quickstart.yaml
VENV := .venv
BIN := $(VENV)/bin
DIST := dist
RUST_SOURCES := $(wildcard rustbpe/src/*.rs) rustbpe/Cargo.toml

export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup quickstart test bench lint types wheel clean

help:
	@echo "make setup        install everything into .venv/"
	@echo "make quickstart   text to chat model on this machine's CPU (FRESH=1 starts over, RECIPE=... takes another recipe)"
	@echo "make test         the whole test suite (TESTS=tests/model for a part)"
	@echo "make bench        the benchmarks against peers that need no data (see benchmarks/ for the others)"
	@echo "make lint         ruff"
	@echo "make types        mypy over scaling, optim, data and trainers"
	@echo "make wheel        a wheel in dist/ that installs without Rust, for this platform and Python 3.11 or newer"

setup: $(VENV)/.built

quickstart: setup
	$(BIN)/python training/speedrun.py --config $(RECIPE) $(if $(FRESH),--fresh) $(ARGS)

# In a process of their own: where Playwright runs, other tests' worker processes would wait for ever.
BROWSER_TESTS = tests/page/test_browser.py

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(or $(TESTS),tests --ignore $(BROWSER_TESTS)) -n 2 --dist loadfile
	$(if $(TESTS),,OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(BROWSER_TESTS))

bench: setup
	$(BIN)/python benchmarks/model.py
	$(BIN)/python benchmarks/generation.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/python -m mypy

wheel: setup
	$(BIN)/maturin build --quiet --release --interpreter $(BIN)/python --out $(DIST)
	@ls $(DIST)/*.whl

clean:
	rm -rf $(VENV) rustbpe/target dist

$(VENV)/.packages: requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing: install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: install a newer Python and run make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar on --quiet -r requirements.lock
	@touch $@

$(VENV)/.built: $(VENV)/.packages pyproject.toml $(RUST_SOURCES)
	@command -v cc >/dev/null || { echo "a C compiler is missing: apt-get install build-essential"; exit 1; }
	@command -v cargo >/dev/null || { echo "Rust is missing: install it with rustup from rustup.rs, or your distribution's cargo 1.83 or newer"; exit 1; }
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
