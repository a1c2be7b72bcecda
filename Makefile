# EchoVLSM: `make book` runs the study and builds the book, `make test` runs the tests. Both need Python 3.11 and
# make, and nothing else: everything is installed into .venv at the versions of requirements.lock.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
CORES ?= 2
SCALE ?= demo
PYTEST_ARGS ?=
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Written last: without it, what lies in .venv is a set-up that did not end, and is made anew.
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup book grid test bench lab lint clean distclean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP)  ## create .venv (done by the others when needed)

book: $(STAMP)  ## run the whole study (SCALE=demo) and build the book
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --cores $(CORES) book --config scale=$(SCALE)

grid: $(STAMP)  ## run the grid of notebooks/grids (SCALE=demo), for the tables of notebook 06
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --cores $(CORES) grid --config scale=$(SCALE)

test: $(STAMP)  ## run the tests (PYTEST_ARGS="-k cohort")
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest $(PYTEST_ARGS)

bench: $(STAMP)  ## time the package against the plain way (BENCH_ARGS="--only scoring"), on an idle machine
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

lab: $(STAMP)  ## open the notebooks in JupyterLab
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter lab notebooks

lint: $(STAMP)  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## remove the built book and caches; runs/, data/ and .venv stay
	rm -rf _build .snakemake .pytest_cache .ruff_cache .hypothesis build
	find . -name .venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print0 | xargs -0 rm -rf

distclean: clean  ## remove also .venv, runs/ and the generated cohorts
	rm -rf $(VENV) runs data/cohorts echovlsm.egg-info

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python found: install Python 3.11, or name one with make PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	    { echo "$(PYTHON) is not Python 3.11 to 3.13: name one with make PYTHON=/path/to/python3.11"; exit 1; }
	@# A finished set-up is brought up to date; the stamp goes first, so that an interrupted update starts anew.
	@if [ -f $(STAMP) ]; then rm $(STAMP); else "$(PYTHON)" -m venv --clear $(VENV); fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)
