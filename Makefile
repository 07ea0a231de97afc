# Every target builds .venv first; nothing else has to be done before `make demo` or `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test browser test-all check fix bench bench-quick docs help
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

# torch comes first and pinned: asked for by another package it would be a newer build with gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "marginkit needs Python >= 3.11, this is " + sys.version.split()[0] + "; run make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)  ## graded feedback in, trained and calibrated models out, on a built-in world (a minute or two, no network)
	$(BIN)/marginkit demo

test: $(STAMP)  ## the quick suite (a few minutes on two cores, no network, no GPU)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not gpu"

browser: $(STAMP)  ## the pages in a browser (needs Chromium)
	$(BIN)/python -m pytest -m browser

test-all: $(STAMP)  ## everything, slow tests included
	$(BIN)/python -m pytest

check: $(STAMP)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(STAMP)  ## what the linter can repair by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## the measurements behind the figures in docs/ (long)
	$(BIN)/python benchmarks/demo_claims.py
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/best_of_n2.py
	$(BIN)/python benchmarks/check.py
	$(BIN)/python benchmarks/self_play.py
	$(BIN)/python benchmarks/coverage.py
	$(BIN)/python benchmarks/evaluate_speed.py
	$(BIN)/python benchmarks/rewardbench_speed.py
	$(BIN)/python benchmarks/report_page.py

bench-quick: $(STAMP)  ## what a training step costs, beside TRL's (about 15 minutes; close everything else)
	$(BIN)/python benchmarks/speed.py --quick

docs: $(STAMP)  ## regenerate the generated pages of docs/
	$(BIN)/python docs/methods_page.py
