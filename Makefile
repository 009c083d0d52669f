# make setup   a virtual environment in .venv with the pinned versions of constraints.txt (done once, redone when they change)
# make demo    grow a network on scikit-learn's real handwritten digits: installs only what that needs, then trains for
#              less than a minute
# make test    lint, types and the tests of every change, four minutes on two quiet cores (installs what setup does)
# make test-all all tests: the whole zoo, fuzzing at length, killed processes, a browser, long runs
# make lint    lint and types only
# make docs    the documentation site in build/site, warnings as errors
# make package wheel and sdist in build/package/dist, the wheel tried in a clean environment without extras
#
# make PYTHON=python3.12 VENV=/tmp/venv test   another interpreter, another place

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.apical-setup
DEMO_STAMP := $(VENV)/.apical-demo
SOURCES := $(wildcard src tests benchmarks examples notebooks docs)
WORKERS ?= 2
PYTEST_ARGS ?=

export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test test-all lint docs package clean
.DELETE_ON_ERROR:

setup: $(STAMP)

# What the demo needs, and the rest is built on. torch comes first and alone, so that nothing else decides its version.
$(DEMO_STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[demo]'
	touch $@

# torchvision and timm are needed by tests and examples only; without them those tests are skipped.
$(STAMP): $(DEMO_STAMP)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev,data,demo,docs,export,live,notebooks,yaml]'
	$(BIN)/python -m pip install --constraint constraints.txt pyyaml huggingface-hub \
		&& $(BIN)/python -m pip install --no-deps torchvision==0.28.0 timm==1.0.31 \
		|| echo "apical: torchvision and timm could not be installed; the tests that need them are skipped"
	touch $@

demo: $(DEMO_STAMP)
	$(BIN)/apical train digits --out runs/demo --overwrite

lint: setup
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

# A file stays on one worker, so that what its tests share is made once. `-m ""` takes back the `-m "not slow"` of
# pyproject.toml.
TESTS = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test: lint
	$(TESTS) $(PYTEST_ARGS)

test-all: lint
	HYPOTHESIS_PROFILE=long $(TESTS) -m "" $(PYTEST_ARGS)

# The theme prints an advertisement for its successor; it is no warning of the build.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

# The wheel is built from the sdist, so that both are complete. torch comes first, as in setup.
PACKAGE := build/package

package:
	rm -rf $(PACKAGE)
	$(PYTHON) -m venv $(PACKAGE)/build $(PACKAGE)/clean
	$(PACKAGE)/build/bin/python -m pip install --quiet build
	$(PACKAGE)/build/bin/python -m build --outdir $(PACKAGE)/dist
	$(PACKAGE)/clean/bin/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(PACKAGE)/clean/bin/python -m pip install --quiet --constraint constraints.txt $(PACKAGE)/dist/*.whl
	cd $(PACKAGE) && clean/bin/python -W error::UserWarning ../../.ci/without_extras.py
	cd $(PACKAGE) && clean/bin/apical --version

clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
