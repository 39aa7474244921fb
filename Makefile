# make reproduce   install into .venv, run the whole chain on synthetic speech, draw the figures
# make test        install if needed, run the tests
# make lint        check style as the tests do
# make docs        build the documentation into site/, with the notebook run once
# LOCK= installs the newest versions that pyproject.toml allows, instead of the exact files that requirements.lock names

PYTHON ?= python3
LOCK ?= requirements.lock
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONUNBUFFERED := 1

.PHONY: reproduce test lint docs clean

reproduce: .venv/installed
	@git update-index --skip-worktree dvc.lock 2>/dev/null || true # it will hold this machine's digests: not for git
	dvc repro
	@echo && cat outputs/$$(sed -n 's/^experiment: *//p' conf/chain.yaml)/results.txt

test: .venv/installed lint
	pytest

lint: .venv/installed
	ruff check .
	ruff format --check .
	lint-imports
	pyright

docs: docs/notebook/index.md
	mkdocs build --strict

docs/notebook/index.md: examples/notebook.py .venv/docs-installed
	mkdir -p $(@D)
	jupytext --to ipynb --execute --output $(@D)/index.ipynb $<
	jupyter nbconvert --to markdown --CoalesceStreamsPreprocessor.enabled=True $(@D)/index.ipynb

.venv/docs-installed: .venv/installed
	$(BIN)/pip install --disable-pip-version-check --editable '.[docs]'
	touch $@

.venv/installed: pyproject.toml $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "pdunroll needs Python 3.11 or newer; name one by: make $(or $(MAKECMDGOALS),reproduce) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(if $(LOCK),$(BIN)/pip install --disable-pip-version-check --no-deps --require-hashes --requirement $(LOCK))
	$(BIN)/pip install --disable-pip-version-check --editable '.[dev]' # with CUDA's libraries, where torch asks for them
	touch $@

clean: # all that git ignores there; the committed record of the paper's runs stays
	rm -rf .venv
	git clean -qfdX outputs multirun docs site
