# make run: set up Sluice and start the server.
# make test: set up, check the format, and run most tests, of which one checks the types; takes a
#   few minutes.
# make test-all: run the remaining tests, which take longer.
# make soak: run ten minutes of load.
# make bench: measure the cost of a call, compared with other gateways.
# docs/quickstart.md gives the commands behind each target, for machines without make.

PYTHON ?= python3
BIN := .venv/bin
SETUP := PYTHON='$(PYTHON)' ./sluice setup --quiet
PYTEST := $(BIN)/pytest -n 4 --dist loadfile

# The tests start hundreds of processes. Without cached bytecode, each would compile every module.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-all soak bench format clean setup setup-dev

run: setup
	@exec ./sluice serve --first-key

test: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(PYTEST) -m "not thorough" $(PYTEST_FLAGS)

test-all: setup-dev
	$(PYTEST) -m thorough $(PYTEST_FLAGS)

soak: setup-dev
	$(BIN)/python -m tests.support.soak $(SOAK_FLAGS)

bench: setup-dev
	$(BIN)/python -m bench $(BENCH_FLAGS)

format: setup-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov

setup:
	@$(SETUP)

setup-dev:
	@$(SETUP) --dev
