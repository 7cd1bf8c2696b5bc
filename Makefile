# make setup, make quickstart, make test, make lint, make models. PYTHON chooses the interpreter that makes the environment.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup quickstart test lint models

setup: .venv/.done

.venv/.done: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 12) or sys.exit("error: Python 3.10 to 3.12 is needed, but $(PYTHON) is %d.%d; give another, such as make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.txt
	touch $@

quickstart: setup
	$(BIN)/python -m paddleseg_ext.cli.quickstart

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

models: setup
	$(BIN)/python -m paddleseg_ext.cli.models
