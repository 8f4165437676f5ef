PYTHON ?= python3
BIN := .venv/bin
# Waiting threads sleep: where another program has a core, spinning ones make training several times slower.
export OMP_WAIT_POLICY ?= PASSIVE
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help install repro test format clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(BIN)/.installed  ## make .venv with the pinned packages

$(BIN)/.installed: pyproject.toml constraints.txt libraries.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

repro: install  ## run the whole pipeline, print the results and the path of the report
	@python -m stages.check
	@dvc repro
	@cat data/reports/results.txt
	@echo report: data/reports/index.html

test: install  ## lint, type-check and test
	ruff check .
	ruff format --check .
	mypy
	pytest --numprocesses logical --maxprocesses 4

format: install  ## bring the sources into the project's layout
	ruff check --fix .
	ruff format .

clean:  ## delete all products but data/raw and the shard store
	rm -rf $(filter-out data/raw data/store data/README.md, $(wildcard data/*))
