# A short menu over pip, cmake and pytest. Everything lands in .venv/ and build/; `make clean` forgets both.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
BUILD := build/test
PROMPT := "The old man looked at the sea and"

PACKAGE := pyproject.toml CMakeLists.txt $(shell find csrc python -type f \
             -not -name '*.so' -not -name '*.pyc' -not -path '*/demo/training/*')
TESTS := $(shell find tests_cpp bench -type f -not -name '*.pyc' 2>/dev/null)
CPP := $(shell find csrc tests_cpp bench -name '*.h' -o -name '*.cpp' -o -name '*.inc' 2>/dev/null)

# Tests run two at a time and share the cores: waiting threads give way, and the libraries beside the
# kernels keep to one thread each.
ctest pytest test-isas test-slow aarch64: export OMP_WAIT_POLICY := passive
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q
# The requirements of an extra (or of the build), as pyproject.toml lists them.
REQUIREMENTS = $(BIN)/python -c 'import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
  extras = p["project"]["optional-dependencies"] | {"build": p["build-system"]["requires"]}; \
  print(*(line for name in sys.argv[1:] for line in extras[name]), sep="\n")'
# $(call apt,packages): installs Debian packages where that is possible without a question.
apt = if ! command -v apt-get >/dev/null; then echo "Please install: $(1)" >&2; exit 1; fi; \
  echo "Installing $(1) with apt-get"; as=; \
  if [ "$$(id -u)" != 0 ]; then as="sudo -n"; fi; \
  { $$as apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$as apt-get install -y -qq --no-install-recommends $(1) \
    </dev/null >/dev/null; } || { echo "apt-get could not install $(1); please install by hand" >&2; exit 1; }
has_header = echo '\#include <$(1)>' | g++ -E -x c++ - >/dev/null 2>&1

# $(call stubs,folder): the stubs of the installed _core.
stubs = cd $(VENV) && bin/pybind11-stubgen moekit._core --exit-code -o $(abspath $(1)) >/dev/null

.PHONY: help demo test ctest pytest test-isas test-slow aarch64 asan tsan wheel bench lint format stubs clean

help: ## This list
	@grep -hE '^[a-z0-9 -]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9 -]+):.*## /\1\t/' | expand -t 12

# --- what is installed, as stamp files: nothing is done twice, and a second run needs no network ---

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "moekit needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	         "Try: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@command -v g++ >/dev/null || { $(call apt,g++); }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { $(call apt,python3-venv); }
	@$(PYTHON) -c 'import os, sysconfig; open(os.path.join(sysconfig.get_path("include"), "Python.h"))' \
	  2>/dev/null || { $(call apt,python3-dev); }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# The package as a user gets it. `make test` installs the same package out of its own build directory.
$(VENV)/.package: $(VENV)/.made $(PACKAGE)
	@echo "Installing moekit into $(VENV)"
	@$(PIP) .
	@touch $@

$(VENV)/.apt: $(VENV)/.made
	@$(call has_header,gtest/gtest.h) && $(call has_header,benchmark/benchmark.h) || \
	  { $(call apt,libgtest-dev libbenchmark-dev); }
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml
	@echo "Installing what the tests need into $(VENV)"
	@$(REQUIREMENTS) build test > $(VENV)/test.txt
	@$(PIP) cmake ninja -r $(VENV)/test.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml
	@echo "Installing what the checks need into $(VENV)"
	@$(REQUIREMENTS) dev > $(VENV)/dev.txt
	@$(PIP) -r $(VENV)/dev.txt
	@touch $@

# One build for the extension module and the C++ tests.
$(VENV)/.built: $(VENV)/.apt $(VENV)/.test $(PACKAGE) $(TESTS)
	@echo "Building moekit and its tests in $(BUILD)"
	@$(PIP) --no-build-isolation -C build-dir=$(BUILD) -C cmake.define.MOEKIT_TESTS=ON .
	@touch $@ $(VENV)/.package

# --- what one types ---

demo: $(VENV)/.package ## Install moekit into .venv and let the shipped model write
	@$(BIN)/moekit generate $(PROMPT) --temperature 0.8 --top-p 0.95 --seed 1

test: ctest pytest ## All C++ and Python tests (installs what they need)

ctest: $(VENV)/.built
	@$(BIN)/ctest --test-dir $(BUILD) --output-on-failure --progress -j 2

pytest: $(VENV)/.built
	@$(PYTEST) -m "not slow"

# ctest walks through the instruction sets by itself; here go the operations, the parts and a share of
# the families. What reads files, plans or draws needs no repetition.
ISA_TESTS := $(wildcard $(foreach t,ops_* nn* router* routing* models_families models_latent models_recurrent \
               models_mxfp4 kv_cache record intervene generate,tests_py/test_$(t).py))
test-isas: $(VENV)/.built ## The tests of kernels and models under this machine's other instruction sets
	@for isa in $$($(BIN)/python -c 'from moekit import _core; print(*_core.runnable_isas()[:-1])'); do \
	  echo "MOEKIT_ISA=$$isa"; MOEKIT_ISA=$$isa $(PYTEST) -m "not slow" $(ISA_TESTS); \
	done

test-slow: $(VENV)/.built ## The tests that take longer than a minute each
	@$(PYTEST) -m slow

aarch64: $(VENV)/.apt $(VENV)/.test ## C++ tests cross-compiled for another processor, under emulation
	@command -v aarch64-linux-gnu-g++ qemu-aarch64 >/dev/null || { $(call apt,g++-aarch64-linux-gnu qemu-user); }
	@PATH="$(abspath $(BIN)):$$PATH"; cmake --preset $@; cmake --build --preset $@; ctest --preset $@

asan tsan: $(VENV)/.apt $(VENV)/.test ## C++ tests under sanitizers (asan: addresses and undefined behaviour; tsan: threads)
	@PATH="$(abspath $(BIN)):$$PATH"; cmake --preset $@; cmake --build --preset $@; ctest --preset $@

wheel: $(VENV)/.test ## Source archive, wheel out of it, and the demo in an environment of its own
	@rm -rf dist build/clean
	@$(BIN)/python -c 'from scikit_build_core.build import build_sdist; build_sdist("dist")' >/dev/null
	@$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps -w dist dist/moekit-*.tar.gz
	@$(PYTHON) -m venv build/clean
	@build/clean/bin/python -m pip --disable-pip-version-check install --quiet dist/moekit-*.whl
	@cd build && clean/bin/moekit generate $(PROMPT) --max-new-tokens 32
	@ls -sh dist

bench: $(VENV)/.apt $(VENV)/.test ## The C++ benchmarks; FLAGS=--quick for a part of them
	@PATH="$(abspath $(BIN)):$$PATH"; cmake --preset release -DMOEKIT_PYTHON=OFF; \
	  cmake --build --preset release; ./build/release/bench/moe_bench $(FLAGS)

lint: $(VENV)/.built $(VENV)/.dev ## ruff, clang-format, mypy --strict, the package's layers, the stubs of _core
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/clang-format --dry-run -Werror $(CPP)
	@$(BIN)/mypy
	@PYTHONPATH=python $(BIN)/lint-imports --no-logo
	@$(call stubs,build/stubs)
	@diff -u python/moekit/_core.pyi build/stubs/moekit/_core.pyi || { echo "make stubs writes them anew" >&2; exit 1; }

format: $(VENV)/.dev ## Format Python and C++
	@$(BIN)/ruff check --fix-only --quiet
	@$(BIN)/ruff format
	@$(BIN)/clang-format -i $(CPP)

stubs: $(VENV)/.built $(VENV)/.dev ## Write python/moekit/_core.pyi anew
	@$(call stubs,build/stubs)
	@cp build/stubs/moekit/_core.pyi python/moekit/_core.pyi

clean: ## Remove .venv/ and build/
	rm -rf $(VENV) build
