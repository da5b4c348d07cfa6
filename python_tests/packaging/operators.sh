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

built, state = _library.build_info()["torch"], _library.libraries()[0]
print(f"{scrd_fast.__file__}: built with torch {built}, run with torch {torch.__version__}: {state.name} {state.state}")
assert "site-packages" in scrd_fast.__file__, "not an installed package"
assert state.state == "loaded", state
CHECK
"$python" -m pytest -p no:cacheprovider python_tests/ops "$@"
