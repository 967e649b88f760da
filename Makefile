# Everything from nothing but Python >= 3.11 and make: the first use of a target creates .venv and installs into
# it; later runs install again only after a change of pyproject.toml or constraints.txt.
#
#   make demo ARGS=--quick        arguments for the command
#   make test PYTHON=python3.12   another interpreter (it matters when .venv is created)
#   make demo PIP_FLAGS=...       flags for every pip install, for example the index that has CPU builds of torch

PYTHON    ?= python3
VENV      ?= .venv
PEERS     := .venv-peers
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

demo: $(VENV)/.installed-eval,train
	$(BIN)/lensteer demo $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebook: $(VENV)/.installed-eval,train,notebooks
	$(BIN)/jupyter lab notebooks $(ARGS)

# Without the peers' environment (no network, or a Python too new for them) they are left out, and the table says so.
bench: $(VENV)/.installed-eval,train
	@$(MAKE) --no-print-directory $(PEERS)/.installed || echo "the peers could not be installed; they are left out" >&2
	$(BIN)/python benchmarks/run.py $(ARGS)

# Leaves .venv and .venv-peers: remove them by hand to start over.
clean:
	rm -rf build dist *.egg-info lensteer-demo .pytest_cache .mypy_cache .ruff_cache
	find . \( -path ./$(VENV) -o -path ./$(PEERS) \) -prune -o -name __pycache__ -type d -print | xargs rm -rf

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
# For tests also repeng, which reads control vectors; alone, because it pins numpy < 2 and runs on 2 all the same.
$(VENV)/.installed-%: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[$*]'
	$(if $(filter dev,$*),$(PIP) --no-deps repeng==0.4.0)
	@touch $@

# Only for `make bench`: the peers pin transformers < 5, lensteer needs 5.
$(PEERS)/.installed: benchmarks/peers-requirements.txt constraints.txt
	$(PYTHON) -m venv $(PEERS)
	@echo '*' > $(PEERS)/.gitignore
	$(PEERS)/bin/python -m pip install --disable-pip-version-check -q $(PIP_FLAGS) '$(TORCH)'
	$(PEERS)/bin/python -m pip install --disable-pip-version-check -q $(PIP_FLAGS) -r benchmarks/peers-requirements.txt
	@touch $@

.PRECIOUS: $(VENV)/.installed-%
