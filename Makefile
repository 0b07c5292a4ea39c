# Needs python3 (3.10 or later) and make; everything else comes from the package index that pip is configured with.
#
#   make demo       install, then a prompt becomes out/demo.mp4, out/demo.png and out/demo.json
#   make test       install, then every check and the quick tests
#   make test-all   install, then every check and every test
#   make check      lint, format, types, import arrows, sizes
#   make format     let ruff repair what it can
#   make clean      remove what the commands left, except the environment (make clean-venv)
#
# TORCH_INDEX=ADDRESS  the package index that holds the build of torch you want (docs/dependencies.md)
# PYTHON=python3.12    another Python

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Waiting threads sleep instead of spinning: on few cores the tests are twice as fast.
QUIET_THREADS := OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0
# A test process per core, each with one thread: processes of two threads on two cores wait for each other most of the time.
SPREAD := OMP_NUM_THREADS=1 $(QUIET_THREADS) $(BIN)/python -m pytest --numprocesses auto --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all check format clean clean-venv

help:
	@sed -n '3,11p' Makefile | cut -c3-

$(STAMP): pyproject.toml constraints.txt tools/environment.py
	$(PYTHON) tools/environment.py $(VENV) --torch-index "$(TORCH_INDEX)"
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	$(QUIET_THREADS) $(BIN)/arvid demo

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_arrows.py tests/test_sizes.py

test: check
	$(SPREAD) -m "not slow"

test-all: check
	$(SPREAD)

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

clean-venv:
	rm -rf $(VENV)
