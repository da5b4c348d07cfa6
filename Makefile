# SPDX-License-Identifier: Apache-2.0
# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
NEWER := .venv-newer
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := setup.py CMakeLists.txt $(shell find csrc -type f)
DEMO_FLAGS := --teacher tf_efficientnet_lite0 --teacher-weights package --size 128 --batch-size 16

.PHONY: help install test test-newer-torch lint format demo clean

help:
	@echo "make demo              make a data set, train, evaluate, screen; ends with demo/report.html"
	@echo "make test              install everything and run all tests"
	@echo "make install           .venv with the package, all extras and the development tools"
	@echo "make lint              ruff, mypy, clang-format; make format mends what can be mended"
	@echo "make test-newer-torch  the same binaries under torch 2.13, in a second environment"

install: $(STAMP)

# torch first: the native code is compiled against the very torch that it will run with.
$(STAMP): pyproject.toml constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt "setuptools>=77" wheel
	$(BIN)/pip install -q -c constraints.txt torch torchvision numpy cmake ninja pybind11
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[all,dev]'
	$(BIN)/python -m scrd_fast info
	touch $@

# Two processes with a thread each: two threads each would wait for one another on two cores.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

test-newer-torch: install
	test -x $(NEWER)/bin/python || $(PYTHON) -m venv $(NEWER)
	$(NEWER)/bin/pip install -q torch==2.13.0 "numpy<2.4" numba opensimplex pytest pytest-timeout hypothesis scipy
	python_tests/newer_torch.sh $(NEWER)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(filter %.h %.cpp %.cu %.cuh,$(NATIVE))

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(filter %.h %.cpp %.cu %.cuh,$(NATIVE))

demo: install
	rm -rf demo
	$(BIN)/python examples/demo/make_data.py demo/data
	$(BIN)/scrd-fast train demo/data --out demo/run $(DEMO_FLAGS) --iterations 250
	$(BIN)/scrd-fast evaluate demo/run demo/data --out demo/evaluation
	$(BIN)/scrd-fast screen demo/run demo/data/test --out demo/screening
	$(BIN)/python examples/demo/report.py --data demo/data --evaluation demo/evaluation --screening demo/screening \
	  --run demo/run --out demo/report.html --check
	@echo "the report: $(CURDIR)/demo/report.html, the numbers: $(CURDIR)/demo/metrics.json"

clean:
	rm -rf build dist demo *.egg-info scrd_fast/*.so
