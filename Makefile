# Every target sets up what it needs: a virtual environment in .venv with the exact versions of constraints.txt.
# A second call finds the stamp and starts at once. PYTHON chooses the interpreter, PIP_FLAGS is handed to pip.
PYTHON ?= python3
PIP_FLAGS ?=
V := .venv/bin
PIP := $(V)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
# One thread per worker: two pytest workers with two threads each would be four threads on two cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench recipes language checks docs mutants clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sfumato needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv

# the package itself, and nothing that only a developer needs
.venv/core.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) hatchling editables
	$(PIP) --no-build-isolation -e .
	@touch $@

.venv/dev.stamp: .venv/core.stamp
	$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

.venv/docs.stamp: .venv/core.stamp
	$(PIP) --no-build-isolation -e '.[docs]'
	@touch $@

.venv/bench.stamp: .venv/core.stamp
	$(PIP) --no-build-isolation -e '.[bench]'
	$(PIP) --no-deps azula k-diffusion torchcfm
	@touch $@

demo: .venv/core.stamp  ## train on MNIST for under 3 minutes, sample a labelled grid, evaluate it: runs/demo
	$(V)/sfumato demo

test: lint  ## ruff, formatting, mypy --strict and every test (this is what CI runs)
	$(ONE_THREAD) $(V)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m 'not slow'

lint: .venv/dev.stamp  ## ruff check, ruff format --check, mypy --strict
	$(V)/ruff check .
	$(V)/ruff format --check .
	$(V)/mypy

format: .venv/dev.stamp  ## mend what ruff can mend
	$(V)/ruff check --fix .
	$(V)/ruff format .

bench: .venv/bench.stamp  ## training and sampling speed against diffusers
	$(V)/python benchmarks/unet_vs_diffusers.py
	$(V)/python benchmarks/sampler_overhead.py

recipes: .venv/core.stamp  ## train every recipe on MNIST for the same minutes and write the table (resumes)
	$(V)/python benchmarks/recipes.py

language: .venv/core.stamp  ## train every language model on the same tokens and write the table (resumes)
	$(V)/python benchmarks/language.py

checks: .venv/dev.stamp  ## the longer studies (tests marked slow)
	$(V)/python -m pytest -m slow

docs: .venv/docs.stamp  ## build the documentation, warnings are errors
	$(V)/mkdocs build --strict

mutants: .venv/dev.stamp  ## inject known faults one by one; each must fail a test
	$(V)/python tests/mutants/run.py

clean:  ## remove the virtual environment and every cache (never runs/)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build dist site
