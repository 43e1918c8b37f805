PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow torture audit lint install clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: install  ## index the bundled corpus, search it, show before and after reranking
	$(BIN)/kalm-cache demo

test: install  ## everything that a change must pass
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -m "not slow"

test-slow: install  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

torture: install  ## kill, cut, refuse, damage: some 20 minutes on two cores; prints what it did and what was lost
	$(BIN)/python -m tests.torture.run

audit:  ## the pinned versions against the advisories of PyPI; needs the network, and fails where one cannot be checked
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

clean:
	rm -rf $(VENV) demo-index eval-index
