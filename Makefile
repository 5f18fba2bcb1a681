# Each target makes its own environment, once, in .venv-PYTHON (some 1.2 GB).
#   make test PYTHON=python3.13
#   make demo DEMO_DIR=/tmp/demo

PYTHON ?= python3
DEMO_DIR ?= demo
WORKERS ?= 2

VENV := .venv-$(subst /,-,$(PYTHON:/%=%))
BIN := $(VENV)/bin
WHEEL_CHECK := $(VENV)/wheel-check
PIP_INSTALL := -m pip install -qq --disable-pip-version-check --no-compile

# The first process that imports a module keeps it compiled, whatever the surroundings
# say: some seconds less for every process that a test starts.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test test-all docs bench check-models lint wheel
help:
	@echo 'make demo | test | test-all | docs | bench | check-models | lint | wheel'

demo: $(VENV)/ready
	$(BIN)/python -m experiments.vae --workdir=$(DEMO_DIR)
	@echo 'The pictures are in $(DEMO_DIR)/samples:'
	@ls $(DEMO_DIR)/samples

test: $(VENV)/ready
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
	    --no-loadscope-reorder --durations=10

# What takes minutes more. The losses, and the numbers of a trained model of every
# experiment, are those of programs that XLA optimizes, as it does outside tests.
test-all: $(VENV)/ready
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -n $(WORKERS) \
	    -m 'long or not long' tests/losses tests/test_zoo.py
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	    -m long --durations=10 --ignore=tests/test_zoo.py tests/test_docs.py \
	    tests/processes tests/test_commands.py tests/test_notebooks.py \
	    tests  # the longest first

# Executes the pages of the lecture. A link or anchor that leads nowhere is an error.
docs: $(VENV)/ready
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo 'The first page is docs/_build/html/index.html'

bench: $(VENV)/ready-bench
	$(BIN)/python -m benchmarks.bench

# Evaluates every model of results/models and compares with the recorded numbers.
check-models: $(VENV)/ready
	@test -d '$(TFDS)' || { echo 'make check-models TFDS=DIR: the directory of the' \
	    'sets that gm-jax prepare has made' >&2; exit 2; }
	$(BIN)/python -m benchmarks.zoo check --data_dir='$(TFDS)'

lint: $(VENV)/ready
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m tests.lint

# Runs outside the repository, so that only the installed files can be imported.
wheel: $(VENV)/ready
	rm -rf build dist $(WHEEL_CHECK)
	$(BIN)/python -m pip wheel -qq --no-deps --wheel-dir dist .
	$(BIN)/python -m venv $(WHEEL_CHECK)
	$(WHEEL_CHECK)/bin/python $(PIP_INSTALL) -c requirements.txt dist/*.whl
	check=$$(cd $(WHEEL_CHECK) && pwd) && cd / && \
	    "$$check/bin/gm-jax" vae --workdir="$$check/run" \
	    --num_steps=2 --num_samples=4 --test_samples=25 && \
	    "$$check/bin/python" -m gm_jax.experiments.vae --workdir="$$check/run" \
	    --num_steps=2 --mode=sample
	rm -rf build $(WHEEL_CHECK)
	@ls dist

# A version manager may put a python3.13 on the path that does not run: then its own
# copies are tried in turn.
$(VENV)/ready: requirements.txt
	@for python in $(PYTHON) \
	    $${PYENV_ROOT:-$$HOME/.pyenv}/versions/*/bin/$(notdir $(PYTHON)); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; \
	  then \
	    echo "Making $(VENV) with $$python"; \
	    exec $$python -m venv --clear $(VENV); \
	  fi; \
	done; \
	echo 'No Python 3.11 or later runs as $(PYTHON): name one with' \
	    'make PYTHON=/path/to/python3.11' >&2; \
	exit 2
	@$(BIN)/python $(PIP_INSTALL) -r requirements.txt
	@touch $@

$(VENV)/ready-bench: $(VENV)/ready
	@$(BIN)/python $(PIP_INSTALL) torch==2.13.0
	@touch $@
