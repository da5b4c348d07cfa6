#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the operators' tests with the libraries as they were built, under the newer torch of another environment:
#   python_tests/newer_torch.sh VENV [pytest arguments]
# VENV holds torch, numpy, scipy, hypothesis, pillow, numba, opensimplex, pytest, pytest-timeout and the build's Python version.
set -eu
if [ $# -lt 1 ] || [ ! -x "$1/bin/python" ]; then
  echo "usage: $0 VENV [pytest arguments]" >&2
  exit 2
fi
python=$(cd "$1" && pwd)/bin/python
shift
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD"
"$python" - <<'CHECK'
import torch
from scrd_fast.ops import _library

built, state = _library.build_info()["torch"], _library.libraries()[0]
print(f"libraries built with torch {built}, run with torch {torch.__version__}: {state.name} {state.state}")
version = lambda text: tuple(int(part) for part in text.split("+")[0].split(".")[:2])
assert version(torch.__version__) > version(built), "the environment's torch is not newer than that of the build"
assert state.state == "loaded", state
CHECK
tests="python_tests/ops"
exec "$python" -m pytest -p no:cacheprovider $tests "$@"
