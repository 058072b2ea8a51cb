# The targets that people, hooks and CI call. Each does its own set-up, once, in .venv and target/.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help develop check format lint test test-rust test-python demo docs models bench evidence fuzz miri sanitize schedules constraints advisories licences workflows package clean cargo-tools environment-anew

# The caller's Python environment must not affect ours.
unexport CONDA_PREFIX PYTHONDONTWRITEBYTECODE PYTHONHOME PYTHONPATH

environment := .venv
python := $(environment)/bin/python
uv := $(environment)/bin/uv
export VIRTUAL_ENV := $(CURDIR)/$(environment)
export PYO3_PYTHON := $(CURDIR)/$(python)

# The environment is made again when its Python does not run, or when PYTHON names another one.
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
WORKERS ?= 2

rust := Cargo.toml Cargo.lock $(shell find rust -type f)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "PYTHON=python3.12 make ... uses another Python than python3 (3.10 or newer)."

$(environment)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	    f"alps needs Python 3.10 or newer, found {sys.version.split()[0]}: set PYTHON, as in PYTHON=python3.12 make")'
	@echo "Making a virtual environment in $(environment)"
	@$(PYTHON) -m venv --clear $(environment)
	@$(python) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@touch $@

$(environment)/.dependencies: $(environment)/.made constraints.txt pyproject.toml
	@echo "Installing the dependencies"
	@$(uv) pip install --quiet --constraint constraints.txt --requirement pyproject.toml \
	    --extra all --group test --group docs
	@touch $@

$(environment)/.release-tools: $(environment)/.dependencies
	@$(uv) pip install --quiet --constraint constraints.txt --group release
	@touch $@

$(environment)/.extension: $(environment)/.dependencies $(rust)
	@echo "Building the extension"
	@$(python) -m maturin develop --release --uv --quiet
	@touch $@

cargo-tools:
	@cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	@cargo clippy --version >/dev/null 2>&1 || rustup component add clippy

develop: $(environment)/.extension ## set up .venv: dependencies, release build of the extension

demo: $(environment)/.extension ## run the whole method on a tiny model, into demo/
	@rm -rf demo
	@$(environment)/bin/alps demo demo

docs: $(environment)/.dependencies ## build the documentation, into target/docs/
	@NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --quiet

check: lint ## for every save: lint and the tests of both languages that are quick and need no torch
	cargo test --quiet --locked
	@$(python) -m pytest --quick --quiet

format: $(environment)/.dependencies cargo-tools ## format Rust and Python, and sort the imports
	cargo fmt
	$(environment)/bin/ruff check --quiet --select I --fix
	$(environment)/bin/ruff format --quiet

lint: $(environment)/.extension cargo-tools ## formatting, clippy, ruff, mypy
	cargo fmt --check
	cargo clippy --quiet --locked --all-targets --all-features -- -D warnings
	$(environment)/bin/ruff check --quiet
	$(environment)/bin/ruff format --quiet --check
	$(python) -m mypy

test: lint test-rust test-python ## lint, all Rust tests, all Python tests

test-rust: ## all Rust tests
	cargo test --quiet --locked

test-python: $(environment)/.extension ## all Python tests, in two processes, or as many as WORKERS says
	@$(python) -m pytest --numprocesses $(WORKERS) --dist loadfile

FUZZ_SECONDS ?= 60
triple := x86_64-unknown-linux-gnu

fuzz: ## fuzz the readers, FUZZ_SECONDS for each of FUZZ_TARGETS; needs cargo-fuzz and a nightly Rust, as the next two
	python3 fuzz/run.py --seconds $(FUZZ_SECONDS) $(FUZZ_TARGETS)

miri: ## run in Miri the tests of the core that it can run
	MIRIFLAGS=-Zmiri-disable-isolation PROPTEST_CASES=2 cargo +nightly miri test --lib --target-dir target/miri -- \
	    simd:: schedule:: addresses_are number_format::tests::encoding

sanitize: ## run the Rust tests with the address sanitizer
	ASAN_OPTIONS=allocator_may_return_null=1 LSAN_OPTIONS=suppressions=$(CURDIR)/tests/rust/leaks.txt \
	    RUSTFLAGS=-Zsanitizer=address cargo +nightly test --lib --test rust --target $(triple) --target-dir target/sanitize

schedules: ## try many orders of the steps of threads
	RUSTFLAGS="--cfg shuttle" cargo test --lib --target-dir target/shuttle models::

models: $(environment)/.extension ## check every model type of transformers, or those in MODEL_TYPES; writes docs/models.md
	@PYTHONPATH=tests $(python) -m layouts.survey $(MODEL_TYPES)

bench: $(environment)/.extension ## time a scan against other programs that read the same weights, and the kernels one by one
	@PYTHONPATH=benches:tests $(python) -m compare
	cargo bench --locked

evidence: $(environment)/.extension ## train which heads matter; WINDOWS and MODEL are folders, as docs/evidence.md says
	cd benches && ../$(python) -m evidence run $(abspath $(WINDOWS)) --model $(abspath $(MODEL)) --results evidence/results

constraints: $(environment)/.made ## pin the newest versions of all dependencies
	$(uv) pip compile --quiet --universal --upgrade --python-version 3.10 --no-header --no-annotate \
	    --extra all --group test --group docs --group release --no-emit-index-url --output-file constraints.txt pyproject.toml

advisories: $(environment)/.release-tools ## look for known faults of the dependencies, and for licences that are not allowed in Rust
	cargo deny --locked check
	$(environment)/bin/pip-audit --strict --progress-spinner off --disable-pip --no-deps --requirement constraints.txt

# What torch brings for NVIDIA's GPUs is NVIDIA's, under its own terms; alps neither ships it nor links to it.
licences: $(environment)/.release-tools ## check the licences of what users install in Python
	@$(uv) pip compile --quiet --extra all --no-header --no-annotate --no-emit-index-url --constraint constraints.txt \
	    pyproject.toml | sed 's/==.*//' | grep -Ev '^(nvidia|cuda)-' \
	    | xargs $(environment)/bin/pip-licenses --order license --packages

workflows: $(environment)/.release-tools ## check .github/ for mistakes and for what an attacker could use
	$(environment)/bin/zizmor --offline --quiet --no-progress .github
	@if command -v actionlint >/dev/null; then actionlint; else echo "actionlint is not installed: skipped"; fi

package: $(environment)/.release-tools ## build and check an sdist, and from it a wheel, in target/package/
	rm -rf target/package
	$(environment)/bin/maturin sdist --quiet --out target/package
	mkdir target/package/unpacked
	tar --extract --gzip --file target/package/*.tar.gz --strip-components 1 --directory target/package/unpacked
	cd target/package/unpacked && CARGO_TARGET_DIR=../../package-build ../../../$(environment)/bin/maturin build \
	    --release --locked --quiet --interpreter $(PYO3_PYTHON) --out ..
	rm -rf target/package/unpacked
	$(environment)/bin/twine check --strict target/package/*
	$(environment)/bin/abi3audit --strict --summary target/package/*.whl

clean: ## remove everything that the other targets made
	rm -rf $(environment) target build demo .mypy_cache .pytest_cache .ruff_cache .hypothesis python/alps/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
