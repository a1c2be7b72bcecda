# EchoVLSM: `make book` runs the study and builds the book, `make test` runs the tests. Both need Python 3.11 and
# make, and nothing else: everything is installed into .venv at the versions of requirements.lock.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
CORES ?= 2
SCALE ?= demo
PYTEST_ARGS ?=
BENCH_ARGS ?=
FAULT_ARGS ?=
# Not the newest: outside an index of CPU builds that is a CUDA build of several gigabytes. TORCH=torch takes it.
TORCH ?= torch==2.13.0

VENV := .venv
LATEST := .venv-latest
BIN := $(VENV)/bin
# Written last: without it, what lies in .venv is a set-up that did not end, and is made anew.
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup book grid test bench faults coverage check-latest check-python lab lint clean distclean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP)  ## create .venv (done by the others when needed)

book: $(STAMP)  ## run the whole study (SCALE=demo) and build the book
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --cores $(CORES) book --config scale=$(SCALE)

grid: $(STAMP)  ## run the grid of notebooks/grids (SCALE=demo), for the tables of notebook 06
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --cores $(CORES) grid --config scale=$(SCALE)

test: $(STAMP)  ## run the tests, CORES at a time (PYTEST_ARGS="-k cohort")
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -n $(CORES) $(PYTEST_ARGS)

bench: $(STAMP)  ## time the package against the plain way (BENCH_ARGS="--only scoring"), on an idle machine
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

faults: $(STAMP)  ## kill, fill the disk, start twice, and record what comes of it (FAULT_ARGS="--only pairs")
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.faults $(FAULT_ARGS)

coverage: $(STAMP)  ## run the tests and record which share of the package's lines they reach
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.covered -n $(CORES) $(PYTEST_ARGS)

check-latest:  ## run the tests with the newest versions allowed instead of the lock's (TORCH="torch==2.13.0")
	@test -n "$(PYTHON)" || { echo "No Python found: name one with make check-latest PYTHON=/path/to/python3.11"; exit 1; }
	"$(PYTHON)" -m venv --clear $(LATEST)
	$(LATEST)/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" --editable ".[dev]"
	PATH="$(CURDIR)/$(LATEST)/bin:$$PATH" $(LATEST)/bin/python -m tests.latest newest --note "PyTorch held at $(TORCH)" -n $(CORES) $(PYTEST_ARGS)

check-python: $(STAMP)  ## run the tests on another Python (PYTHON=python3.13 VENV=.venv-313) and record the outcome
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.latest "locked" -n $(CORES) $(PYTEST_ARGS)

lab: $(STAMP)  ## open the notebooks in JupyterLab
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter lab notebooks

lint: $(STAMP)  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## remove the built book and caches; runs/, data/ and .venv stay
	rm -rf _build .snakemake .pytest_cache .ruff_cache .hypothesis build
	find . -name '.venv*' -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print0 | xargs -0 rm -rf

distclean: clean  ## remove also .venv, runs/ and the generated cohorts
	rm -rf $(VENV) $(LATEST) runs data/cohorts echovlsm.egg-info

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python found: install Python 3.11, or name one with make PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	    { echo "$(PYTHON) is not Python 3.11 to 3.13: name one with make PYTHON=/path/to/python3.11"; exit 1; }
	@# A finished set-up is brought up to date; the stamp goes first, so that an interrupted update starts anew.
	@if [ -f $(STAMP) ]; then rm $(STAMP); else "$(PYTHON)" -m venv --clear $(VENV); fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)
