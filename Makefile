# `make demo` runs the main job, `make test` the checks and tests. Both set up .venv on a fresh machine and reuse it.
PYTHON ?= $(shell command -v python3.11 || command -v python3.10 || command -v python3)
GPU_PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
KERNELS := $(shell find cmake kernels train/native -name "*.cmake" -o -name "*.cpp" -o -name "*.h" -o -name "*.inc")

.PHONY: demo test docs gpu-check lint wheels clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/hebbline demo

# Two processes share the tests, by files, each with a thread: two cores are then busy. Those of serving come after, one
# at a time: each has a server, a model's process and clients of its own.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/serve
	$(BIN)/pytest tests/serve

# The documentation as a site, in .build/site/index.html.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# On a machine with an NVIDIA GPU: compares and times what can run there, and writes docs/gpu/<gpu>.md. Fetches nothing.
# It takes .venv where that is set up, and else any Python with torch and Triton, for the kernels alone.
gpu-check:
	@if [ -x $(BIN)/hebbline ]; then $(BIN)/hebbline gpu-check; else $(GPU_PYTHON) from_source.py kernels.gpu.check; fi

# Into dist/: a wheel for x86-64 and one for AArch64, which Debian's g++-aarch64-linux-gnu compiles, for any Python and
# for glibc 2.28 or later. WHEELS=x86_64 makes the one alone.
WHEELS := x86_64 aarch64
wheels: $(WHEELS:%=wheel-%)

wheel-%: $(INSTALLED)
	rm -rf .build/wheels/$*
	PATH="$(abspath $(BIN)):$$PATH" _PYTHON_HOST_PLATFORM=linux-$* $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation . \
	    --wheel-dir .build/wheels/$* --config-settings build-dir=.build/wheel-$* \
	    --config-settings cmake.define.HEBBLINE_MANYLINUX=ON --config-settings cmake.define.HEBBLINE_TESTS=OFF $(TOOLCHAIN_$*)
	mkdir -p dist
	# auditwheel knows its own architecture alone; what it would find elsewhere is what tests/wheels looks for.
	if [ $* = $$(uname -m) ]; then \
	    PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --only-plat --plat manylinux_2_28_$* \
	        --wheel-dir dist .build/wheels/$*/*.whl; \
	else \
	    $(BIN)/python -m wheel tags --remove --platform-tag manylinux_2_28_$* .build/wheels/$*/*.whl > /dev/null && \
	    mv .build/wheels/$*/*.whl dist/; \
	fi

TOOLCHAIN_aarch64 := --config-settings cmake.define.CMAKE_TOOLCHAIN_FILE=$(CURDIR)/cmake/aarch64-linux-gnu.cmake

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(INSTALLED): pyproject.toml constraints.txt CMakeLists.txt $(KERNELS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)) and "hebbline needs Python 3.10 or 3.11 (PYTHON=/path/to/python make ...)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .build build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
