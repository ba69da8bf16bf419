# make run: set up and serve.
# make test: set up, then check the format, the types and what most tests hold; a few minutes.
# make test-all: the tests that take longer. Together with make test these are all tests.
# make soak: ten minutes of load. make bench: what a call costs, beside other gateways.
# docs/quickstart.md gives the commands behind each target, for machines without make.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.requirements
READY_DEV := .venv/.requirements-dev
PIP := $(BIN)/pip install --disable-pip-version-check
PYTEST := $(BIN)/pytest -n 4 --dist loadfile
DOTENV := $(if $(wildcard .env),$(BIN)/dotenv run --no-override --,)

# The tests start hundreds of processes, which would each compile every module.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-all soak bench format clean

run: $(READY)
	@$(DOTENV) $(BIN)/flask --app wsgi quickstart
	@$(DOTENV) $(BIN)/gunicorn wsgi:app

test: $(READY_DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -m "not thorough" $(PYTEST_FLAGS)

test-all: $(READY_DEV)
	$(PYTEST) -m thorough $(PYTEST_FLAGS)

soak: $(READY_DEV)
	$(BIN)/python -m tests.support.soak $(SOAK_FLAGS)

bench: $(READY_DEV)
	$(BIN)/python -m bench $(BENCH_FLAGS)

format: $(READY_DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Sluice needs Python 3.11 or newer. Install one and type: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "Python's venv module is missing. On Debian or Ubuntu type: sudo apt install python3-venv" >&2; exit 1; }
	@echo "Creating .venv ..."
	@$(PYTHON) -m venv .venv

$(READY): requirements.txt .venv/bin/python
	@echo "Installing the packages of requirements.txt into .venv (once, about half a minute) ..."
	@$(PIP) -r requirements.txt
	@touch $@

$(READY_DEV): requirements-dev.txt requirements-otel.txt requirements.txt .venv/bin/python
	@echo "Installing the packages of requirements-dev.txt into .venv (once, about a minute) ..."
	@$(PIP) -r requirements-dev.txt
	@touch $@ $(READY)
