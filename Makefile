# SPDX-License-Identifier: Apache-2.0
# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
TORCH ?= 2.15.0
WHEEL_ARCHS := 7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEBIAN := DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium dicom3tools >/dev/null 2>&1
DEBIAN_LISTS := apt-get update -qq >/dev/null 2>&1
NATIVE := setup.py CMakeLists.txt $(shell find csrc -type f)
CXX_FILES := $(filter %.h %.cpp %.cu %.cuh,$(NATIVE)) $(wildcard python_tests/*/*.h python_tests/*/*.cpp)

.PHONY: help install test tools test-release wheel test-wheel install-matrix lint format docs demo bench clean

help:
	@echo "make demo              make a data set, train, evaluate, screen; ends with demo/report.html"
	@echo "make test              install everything (of Debian too, where it may) and run all tests"
	@echo "make install           .venv with the package, all extras and the development tools"
	@echo "make lint              ruff, mypy, clang-format; make format mends what can be mended"
	@echo "make docs              the documentation site, build/site/index.html; a warning is an error"
	@echo "make bench             measure the operators: table, build/bench.json, build/bench.csv"
	@echo "make wheel             wheel and source archive of a release in dist/, for all GPUs, checked"
	@echo "make test-wheel        that wheel in a fresh environment with torch $(TORCH): the operators' tests"
	@echo "make test-release      the tests that make test leaves out"
	@echo "make install-matrix    every way to install in every situation; the table of docs/installation.md"

install: $(STAMP)

# torch first: the native code is compiled against the very torch that it will run with.
$(STAMP): pyproject.toml constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt "setuptools>=77,<82" wheel
	$(BIN)/pip install -q -c constraints.txt torch torchvision numpy cmake ninja pybind11
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[all,dev]'
	$(BIN)/python -m scrd_fast info
	touch $@

# A browser and a checker of DICOM files: where they are missing and cannot be installed, what needs them skips.
tools:
	@command -v chromium >/dev/null && command -v dciodvfy >/dev/null || $(DEBIAN) || ($(DEBIAN_LISTS) && $(DEBIAN)) \
		|| echo "no chromium or no dciodvfy: some tests will skip"

# Two processes on two cores: a thread each, and none that spins while it waits.
test: install tools
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadgroup

wheel: install
	TORCH_CUDA_ARCH_LIST="$(WHEEL_ARCHS)" $(BIN)/python python_tests/packaging/build_wheel.py dist

test-release: install tools
	$(BIN)/python -m pytest -m release

test-wheel: install
	ls dist/*.whl || $(MAKE) wheel
	$(BIN)/python python_tests/packaging/use_wheel.py dist $(TORCH)

install-matrix: install
	$(BIN)/python python_tests/packaging/install_matrix.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

demo: install
	$(BIN)/python examples/demo/run.py demo

# One process and all cores: what else runs on the machine ends up in the numbers.
bench: install
	mkdir -p build
	$(BIN)/python -m pytest benchmarks/bench_*.py --benchmark-json=build/pytest-benchmark.json
	$(BIN)/python -m scrd_fast bench --out build/bench.json --csv build/bench.csv --plot build/bench.png

clean:
	rm -rf build dist demo *.egg-info scrd_fast/*.so $(STAMP)
