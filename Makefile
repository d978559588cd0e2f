# What each target needs it makes: the virtual environment .venv, the dependencies, the compiled core, the C helpers.
# Needed on the machine: Python 3.11 or later with venv, and a C compiler with Python's headers.  Without a compiler
# everything runs interpreted, with the same results, slower; and nothing can be recorded.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONDONTWRITEBYTECODE :=

# A compilation that fails is an error wherever there is a compiler.
HAVE_CC := $(shell command -v cc >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 && echo yes)
export VMALAB_BUILD ?= $(if $(HAVE_CC),compiled,auto)

# At least what pyproject.toml lists to compile, and what the C helpers are made of.
CORE := $(wildcard src/vmalab/*.py src/vmalab/vma/*.py src/vmalab/pages/*.py src/vmalab/syscalls/*.py \
  src/vmalab/fuzz/*.py src/vmalab/live/agent.py \
  src/vmalab/bench/drive.py src/vmalab/trace/*.py)
NATIVE := $(wildcard src/vmalab/live/build_native.py src/vmalab/live/native/* src/vmalab/live/native/*/*)

PYTEST_FLAGS ?= -q

.PHONY: help demo test test-compiled test-interpreted coverage mutation bench instructions campaign fuzz-parsers lint \
  format types contracts build clean

help: ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 26

demo: .venv/built ## record a program on this machine, replay it, and explain what its address space went through
	@$(BIN)/vmalab demo

test: .venv/built ## the tests, with the compiled core and with the interpreted one
	@status=0; \
	for form in $(if $(filter interpreted,$(VMALAB_BUILD)),,$(if $(HAVE_CC),compiled)) interpreted; do \
	  $(MAKE) test-$$form || status=1; \
	done; exit $$status

test-compiled: .venv/built ## the tests with the compiled core
	@echo "== tests, compiled core"
	@VMALAB_PURE=0 VMALAB_EXPECT_FORM=compiled $(BIN)/python -m pytest $(PYTEST_FLAGS)

test-interpreted: .venv/built ## the tests with the interpreted core
	@echo "== tests, interpreted core"
	@VMALAB_PURE=1 VMALAB_EXPECT_FORM=interpreted $(BIN)/python -m pytest $(PYTEST_FLAGS)

coverage: .venv/built ## that scenes, properties and the tests of the tree reach every branch of the core
	@mkdir -p build
	@VMALAB_PURE=1 $(BIN)/python -m coverage run --data-file=build/coverage --source=vmalab.vma -m pytest -q tests/vma
	@$(BIN)/python -m coverage report --data-file=build/coverage --show-missing --fail-under=100

mutation: .venv/built ## small changes of merge, modify and unmap, each to be found by a test (half an hour; goes on where it was)
	@$(BIN)/python -m tests.planted.mutation

bench: .venv/built ## the model beside this kernel: a table of rates and ratios
	@$(BIN)/vmalab bench

instructions: .venv/built ## what each workload costs in instructions, beside the commit before (needs valgrind)
	@$(BIN)/python -m bench.instructions

campaign: .venv/built ## lockstep with this kernel on fresh seeds until Ctrl-C; runs and divergences in build/campaign.db
	@mkdir -p build
	@$(BIN)/vmalab fuzz live --steps 1000000000 --corpus build/campaign.db --resume

fuzz-parsers: .venv/installed ## all that reads text, on ten million mutated inputs (hours; goes on where it was after Ctrl-C)
	@$(BIN)/python -m tests.fuzz.parsers

lint: .venv/installed ## style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: .venv/installed ## put the style right where a machine can
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

types: .venv/installed ## mypy --strict
	@$(BIN)/mypy

contracts: .venv/installed ## the direction of imports
	@$(BIN)/lint-imports

build: .venv/built ## the virtual environment, the compiled core and the C helpers

clean: ## remove all that was made
	rm -rf .venv build dist src/*.egg-info src/vmalab/live/_native .mypy_cache .ruff_cache .pytest_cache \
	  .import_linter_cache .hypothesis
	find src tests -name '__pycache__' -type d -prune -exec rm -rf {} +
	find src -name '*.so' -delete

# The first Python from 3.11 on that can make a virtual environment, one with headers before one without.
define FIND_PYTHON
fallback=; \
for p in $${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do \
  command -v "$$p" >/dev/null 2>&1 || continue; \
  "$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
  if "$$p" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))'; \
  then fallback=$$p; break; fi; \
  [ -n "$$fallback" ] || fallback=$$p; \
done; \
if [ -z "$$fallback" ]; then \
  echo "make: no Python 3.11 or later with the venv module was found; install one (on Debian: python3 python3-venv python3-dev)," \
    "or name it: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 2; \
fi; python=$$fallback
endef

.venv/installed: pyproject.toml
	@$(FIND_PYTHON); \
	[ -x $(BIN)/python ] && $(BIN)/python -c '' 2>/dev/null || { \
	  echo "== virtual environment .venv ($$("$$python" --version))"; "$$python" -m venv --clear .venv; }
	@echo "== dependencies"
	@$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
	  print("\n".join(p["build-system"]["requires"] + p["project"]["dependencies"] + p["project"]["optional-dependencies"]["dev"]))' \
	  > .venv/requirements.txt
	@$(BIN)/python -m pip install -qq -r .venv/requirements.txt
	@$(BIN)/python -c 'import tomllib' && VMALAB_BUILD=interpreted $(BIN)/python -m pip install -qq \
	  --no-build-isolation --no-deps --editable .
	@touch $@

.venv/built: .venv/installed setup.py $(CORE) $(NATIVE)
	@echo "== core and helpers ($(VMALAB_BUILD))"
	@if ! $(BIN)/python setup.py --quiet build_native build_ext --inplace > .venv/build.log 2>&1; then \
	  grep -E 'error|^vmalab:' .venv/build.log >&2 || tail -n 20 .venv/build.log >&2; \
	  echo "make: the build failed; all it said is in .venv/build.log" >&2; exit 2; fi
	@# A change that compiles to the same code leaves an old extension in place: it is current all the same.
	@find src -name '*.so' -exec touch {} +
	@grep -h '^vmalab:' .venv/build.log || true
	@$(BIN)/python -c 'import vmalab; print("== the core is", vmalab.form())'
	@touch $@
