# Everything from nothing but Python >= 3.11 and make: the first use of a target creates .venv and installs into
# it; later runs install again only after a change of pyproject.toml or constraints.txt.
#
#   make demo ARGS=--quick        arguments for the command
#   make test PYTHON=python3.12   another interpreter (it matters when .venv is created)
#   make demo PIP_FLAGS=...       flags for every pip install, for example the index that has CPU builds of torch

PYTHON    ?= python3
VENV      ?= .venv
ARGS      ?=
PIP_FLAGS ?=
BIN       := $(VENV)/bin
PIP        = $(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_FLAGS)
TORCH     := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-slow lint notebook bench clean

help:
	@echo "make demo | test | test-slow | lint | notebook | bench | clean"

demo: $(VENV)/.installed-eval
	$(BIN)/lensteer demo $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebook: $(VENV)/.installed-eval,notebooks
	$(BIN)/jupyter lab notebooks $(ARGS)

bench: $(VENV)/.installed-eval
	$(BIN)/python benchmarks/run.py $(ARGS)

# Leaves .venv: remove it by hand to start over.
clean:
	rm -rf build dist *.egg-info lensteer-demo .pytest_cache .mypy_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print | xargs rm -rf

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lensteer needs Python 3.11 or later; $(PYTHON) is not. Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and alone: left to the resolver it may come as another build, with gigabytes of CUDA packages.
$(VENV)/.torch: $(VENV)/.created constraints.txt
	@echo "installing into $(VENV): a few minutes the first time"
	$(PIP) '$(TORCH)'
	@touch $@

# .installed-dev is an editable install of ".[dev]", and so for the other extras.
$(VENV)/.installed-%: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[$*]'
	@touch $@

.PRECIOUS: $(VENV)/.installed-%
