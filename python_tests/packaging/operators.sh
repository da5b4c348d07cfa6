#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the operators' tests on the package that is installed, not on the files of a clone:
#   operators.sh CLONE [pytest arguments]
# PYTHON (default: python) has the package, pytest, pytest-timeout, hypothesis, opensimplex, numba and scipy.
set -eu
if [ $# -lt 1 ] || [ ! -d "$1/python_tests/ops" ]; then
  echo "usage: $0 CLONE [pytest arguments]" >&2
  exit 2
fi
clone=$(cd "$1" && pwd)
shift
python=$(command -v "${PYTHON:-python}")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -R "$clone/python_tests" "$clone/pyproject.toml" "$folder"
cd "$folder"
"$python" - <<'CHECK'
import torch, scrd_fast
from scrd_fast.ops import _library

facts, states = _library.build_info(), {state.name: state.state for state in _library.libraries()}
print(f"{scrd_fast.__file__}: built with torch {facts['torch']}, run with torch {torch.__version__}: {states}")
assert "site-packages" in scrd_fast.__file__, "not an installed package"
assert states["cpu"] == "loaded"
assert (states["cuda"] == "loaded") == bool(facts["cuda"] and torch.version.cuda), "the CUDA library"
CHECK
"$python" -m pytest -p no:cacheprovider python_tests/ops "$@"
