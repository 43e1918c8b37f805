PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO_STAMP := $(VENV)/.demo
DEV_STAMP := $(VENV)/.installed

.PHONY: demo test test-slow test-cuda test-processors torture docs audit lint install clean

install: $(DEV_STAMP)

$(DEMO_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e .
	touch $(DEMO_STAMP)

$(DEV_STAMP): $(DEMO_STAMP)
	$(PIP_INSTALL) -e ".[dev]"
	touch $(DEV_STAMP)

demo: $(DEMO_STAMP)  ## index the bundled corpus, search it, show before and after reranking
	$(BIN)/kalm-cache demo

lint: install  ## style, types and which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## everything that a change must pass
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --durations=25

test-slow: install  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-cuda: install  ## the tests that need a GPU; without one they are skipped, and counted
	$(BIN)/python -m pytest -rs tests/model/test_cuda.py

test-processors: install  ## the tests that depend on the processor, under several instruction sets and environments
	$(BIN)/python -m tests.processors

torture: install  ## kill, cut, refuse, damage: some 20 minutes on two cores; prints what it did and what was lost
	$(BIN)/python -m tests.torture.run

docs: $(DEMO_STAMP)  ## the user guide, into build/site; a broken link or name is an error
	$(PIP_INSTALL) -e ".[docs]"
	$(BIN)/mkdocs build --strict

audit:  ## the pinned versions against the advisories of PyPI; needs the network, and fails where one cannot be checked
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

clean:
	rm -rf $(VENV) demo-index eval-index build
