# make run: set up Sluice and start the server.
# make test: set up, check the format and the types, and run most tests; takes a few minutes.
# make test-all: run the remaining tests, which take longer.
# make soak: run ten minutes of load.
# make bench: measure the cost of a call, compared with other gateways.
# docs/quickstart.md gives the commands behind each target, for machines without make.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.requirements
READY_DEV := .venv/.requirements-dev
PIP := $(BIN)/pip install --disable-pip-version-check
PYTEST := $(BIN)/pytest -n 4 --dist loadfile
DOTENV := $(if $(wildcard .env),$(BIN)/dotenv run --no-override --,)

# The tests start hundreds of processes. Without cached bytecode, each would compile every module.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-all soak bench format clean

run: $(READY)
	@$(if $(wildcard .env),$(BIN)/python config.py .env)
	@$(DOTENV) $(BIN)/flask --app wsgi quickstart
	@$(DOTENV) sh -c '[ -n "$$WEB_CONCURRENCY" ] || unset WEB_CONCURRENCY; exec $(BIN)/gunicorn wsgi:app'

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
	  echo "Sluice needs Python 3.11 or newer. Install it, then run: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "Python's venv module is missing. On Debian or Ubuntu, run: sudo apt install python3-venv" >&2; exit 1; }
	@echo "Creating .venv ..."
	@$(PYTHON) -m venv .venv

$(READY): requirements.txt .venv/bin/python
	@echo "Installing the packages in requirements.txt into .venv (only once, takes about half a minute) ..."
	@$(PIP) -r requirements.txt
	@touch $@

$(READY_DEV): requirements-dev.txt requirements-otel.txt requirements.txt .venv/bin/python
	@echo "Installing the packages in requirements-dev.txt into .venv (only once, takes about a minute) ..."
	@$(PIP) -r requirements-dev.txt
	@touch $@ $(READY)
