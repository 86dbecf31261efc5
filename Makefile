# Everything a fresh clone needs: `make demo` and `make test` set up .venv/ by themselves.
# Another interpreter: make PYTHON=/path/to/python3.12 demo

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Touched when the packages pyproject.toml asks for are installed; older than it: pip runs again.
ASKED := pyproject.toml setup.py
STAMP := $(VENV)/installed
TEST_STAMP := $(VENV)/installed_tests
# `make test-all` runs the tests on this Python too, with the newest jax that pyproject.toml allows,
# where there is such a Python: make NEWEST=/path/to/python3.13 test-all
NEWEST ?= python3.13
NEWEST_VENV := .venv-newest
NEWEST_STAMP := $(NEWEST_VENV)/installed_tests
# `$(call install,VENV,WHAT)`: by uv, in a quarter of pip's time; by pip where uv cannot (an index
# that only pip is told of). --no-compile: most files of these packages are never imported.
PIP := -m pip install --quiet --no-compile --disable-pip-version-check
install = { $(1)/bin/python $(PIP) uv && \
  $(1)/bin/uv pip install --quiet --python $(1)/bin/python $(2) 2>/dev/null; } || \
  $(1)/bin/python $(PIP) $(2)
TESTED := ".[test,test-browser]"
# A worker that has none left takes tests of the other's: one file holds minutes of the slow ones.
# Without a new worker for one that died: pytest-xdist waits for its tests for ever.
PYTEST := -m pytest -n 2 --dist worksteal --max-worker-restart 0 -q
# Large pages speed up the fresh arrays that training on a CPU keeps asking for.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
# Compiled modules are kept, whatever the shell says: the tests start a hundred Python processes.
export PYTHONDONTWRITEBYTECODE :=

.DELETE_ON_ERROR:
.PHONY: help demo test test-all test-newest clean

help:
	@echo "make demo       the whole loop on the shapes world; ends with the path of a report"
	@echo "make test       the tests that continuous integration runs"
	@echo "make test-all   those and the slow ones, programs compiled as users compile them; and, where"
	@echo "                there is a $(NEWEST), the tests on it with the newest jax"
	@echo "make clean      removes .venv/ and what the tools left (runs/ stays)"

$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || \
	  { echo "There is no '$(PYTHON)'. Give Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "'$(PYTHON)' is not Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 2; }
	@"$(PYTHON)" -m venv $(VENV)

$(STAMP): $(ASKED) | $(BIN)/python
	@echo "Setting up $(VENV)/ (once, about 20 seconds)"
	@$(call install,$(VENV),-e .)
	@touch $@

$(TEST_STAMP): $(ASKED) | $(BIN)/python
	@echo "Setting up $(VENV)/ with what the tests need (once, about a minute)"
	@$(call install,$(VENV),-e $(TESTED))
	@touch $@ $(STAMP)

# The demo's programs run for seconds each: LLVM's level 1 compiles them in two thirds of the time.
demo: export XLA_FLAGS := $(XLA_FLAGS) --xla_backend_optimization_level=1
demo: $(STAMP)
	$(BIN)/python -m srum_jax.main --config configs/shapes.py --workdir runs/shapes

test: $(TEST_STAMP)
	$(BIN)/python $(PYTEST) -m "not slow" tests

test-all: $(TEST_STAMP)
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python $(PYTEST) tests research
	@if "$(NEWEST)" -c "" 2>/dev/null; then $(MAKE) test-newest; else \
	  echo "No $(NEWEST) here: the newest jax is not tried (make NEWEST=/path/to/python3.13 test-all)"; fi

$(NEWEST_STAMP): $(ASKED)
	@echo "Setting up $(NEWEST_VENV)/ with the newest jax that pyproject.toml allows"
	@"$(NEWEST)" -m venv $(NEWEST_VENV)
	@$(call install,$(NEWEST_VENV),--upgrade -e $(TESTED))
	@touch $@

test-newest: $(NEWEST_STAMP)
	$(NEWEST_VENV)/bin/python $(PYTEST) -m "not slow" tests

clean:
	rm -rf $(VENV) $(NEWEST_VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
