# What people, hooks and CI call. Every target does its own set-up, once, in .venv and target/.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo docs test develop lint models bench constraints clean environment-anew

# An environment of the caller's must not leak into ours.
unexport CONDA_PREFIX PYTHONHOME PYTHONPATH

environment := .venv
python := $(environment)/bin/python
uv := $(environment)/bin/uv
export VIRTUAL_ENV := $(CURDIR)/$(environment)
export PYO3_PYTHON := $(CURDIR)/$(python)

# The environment is made anew when it does not run, or when another Python is asked for.
identity = $(shell $(1) -c 'import sys; print(sys.version, sys.base_prefix)' 2>&1)
ifneq ($(wildcard $(environment)/.made),)
ifneq ($(shell $(python) -c 'print("runs")' 2>&1),runs)
$(environment)/.made: environment-anew
else ifdef PYTHON
ifneq ($(call identity,$(PYTHON)),$(call identity,$(python)))
$(environment)/.made: environment-anew
endif
endif
endif
PYTHON ?= python3

rust := Cargo.toml Cargo.lock $(shell find rust -type f)
cargo_tools := fmt clippy

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "PYTHON=python3.12 make ... takes another Python than python3 (3.10 or newer)."

$(environment)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	    f"alps needs Python 3.10 or newer, found {sys.version.split()[0]}: set PYTHON, as in PYTHON=python3.12 make")'
	@echo "Making a virtual environment in $(environment)"
	@$(PYTHON) -m venv --clear $(environment)
	@$(python) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@touch $@

$(environment)/.dependencies: $(environment)/.made constraints.txt pyproject.toml
	@echo "Installing the dependencies"
	@$(uv) pip install --quiet --constraint constraints.txt --requirement pyproject.toml --extra all
	@touch $@

$(environment)/.extension: $(environment)/.dependencies $(rust)
	@echo "Building the extension"
	@$(python) -m maturin develop --release --uv --quiet
	@touch $@

develop: $(environment)/.extension ## set up .venv: dependencies, release build of the extension

demo: $(environment)/.extension ## the whole method on a tiny model, into demo/
	@rm -rf demo
	@$(environment)/bin/alps demo demo

docs: $(environment)/.dependencies ## build the documentation, into target/docs/
	@NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --quiet

lint: $(environment)/.extension ## formatting, clippy, ruff, mypy
	@for tool in $(cargo_tools); do \
	    cargo $$tool --version >/dev/null 2>&1 || rustup component add $${tool/fmt/rustfmt}; \
	done
	cargo fmt --check
	cargo clippy --quiet --locked --all-targets --all-features -- -D warnings
	$(environment)/bin/ruff check --quiet
	$(environment)/bin/ruff format --quiet --check
	$(python) -m mypy

test: lint ## lint, the Rust tests, the Python tests
	cargo test --quiet --locked
	@$(python) -m pytest

models: $(environment)/.extension ## hold alps against every model type of transformers; writes docs/models.md
	@PYTHONPATH=tests $(python) -m layouts.survey $(MODEL_TYPES)

bench: $(environment)/.extension ## compare a scan with what else could be done, time the parts of the core
	@PYTHONPATH=benches:tests $(python) -m compare
	cargo bench --locked

constraints: $(environment)/.made ## pin the newest versions of all dependencies anew
	$(uv) pip compile --quiet --universal --upgrade --python-version 3.10 --extra all --no-header --no-annotate \
	    --no-emit-index-url --output-file constraints.txt pyproject.toml

clean: ## remove everything that the other targets made
	rm -rf $(environment) target build demo .mypy_cache .pytest_cache .ruff_cache .hypothesis python/alps/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
