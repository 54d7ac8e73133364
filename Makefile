# Every target does its own set-up, in .venv, on a machine that has python3.11 (or PYTHON=...).
PYTHON ?= python3.11
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: test test-slow test-all demo style bench clean
.PHONY: docs dist

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,examples,benchmarks,dev]'
	touch $@

# Processes of one thread each; much of the time goes to compiling Triton kernels, the first time.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

test: $(READY)
	$(PYTEST) -m "not slow"

# And what takes minutes: kernels for four GPUs, all pairs of dtypes, long signals, large transforms.
test-slow: $(READY)
	$(PYTEST) -m slow

test-all: test test-slow

demo: $(READY)
	$(BIN)/python examples/train_separator.py --out runs/demo

# mypy reads the package, and a use of it.
style: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typed_use.py

# The site in build/docs: these pages and the docstrings. A warning, so a dead link, is an error.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --fail-on-warning --nitpicky --quiet --fresh-env docs build/docs

# Wheel and sdist, in dist/; the wheel then checks itself in empty environments.
dist: $(VENV)/.dist
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python .ci/check_wheel.py

# What an extra installs over what is there.
$(VENV)/.docs $(VENV)/.dist: $(VENV)/.%: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

bench: $(READY)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build runs *.egg-info
