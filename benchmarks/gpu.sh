#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Everything that needs an NVIDIA GPU, within ten minutes and without a network: builds the libraries in place, runs
# the tests marked `cuda`, compute-sanitizer and the GPU's benchmarks.
#
#   benchmarks/gpu.sh [--no-build] [FOLDER FOR THE JSON, default benchmarks/results]
#
# Wants python (PYTHON, default python3) with torch, nvcc for torch's CUDA version, and the modules named below, which
# may come from PYTHONPATH. Builds for TORCH_CUDA_ARCH_LIST, default 9.0. `--no-build` takes the libraries that are
# there.
# Exit codes: 0 all passed, 1 a step failed, 2 usage, 4 no GPU or something missing.
set -u
python=${PYTHON:-python3}
build=yes
if [ "${1:-}" = --no-build ]; then build=no; shift; fi
case "${1:-}" in -*) echo "usage: $0 [--no-build] [FOLDER]" >&2; exit 2 ;; esac
[ $# -le 1 ] || { echo "usage: $0 [--no-build] [FOLDER]" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/benchmarks/results}
case $out in /*) ;; *) out=$PWD/$out ;; esac
cd "$root" || exit 2
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONDONTWRITEBYTECODE=1

"$python" - "$build" <<'CHECK' || exit 4
import importlib.util, shutil, sys

if importlib.util.find_spec("torch") is None:
    sys.exit(f"gpu.sh: {sys.executable} has no torch")
import torch

if not torch.cuda.is_available():
    sys.exit(f"gpu.sh: torch {torch.__version__} finds no NVIDIA GPU; this script measures nothing without one")
wanted = {"numpy", "pytest", "hypothesis", "numba", "opensimplex", "PIL"}
if sys.argv[1] == "yes":
    wanted |= {"setuptools", "pybind11"}
    wanted |= {name for name in ("cmake", "ninja") if shutil.which(name) is None}
missing = sorted(name for name in wanted if importlib.util.find_spec(name) is None)
if missing:
    sys.exit("gpu.sh: not importable: " + ", ".join(missing))
gpu = torch.cuda.get_device_properties(0)
print(f"{gpu.name}, sm {gpu.major}.{gpu.minor}, torch {torch.__version__}, CUDA {torch.version.cuda}")
CHECK

mkdir -p "$out" || exit 2
summary=""
status=0
note() { summary="$summary
  $1"; }

# step NAME SECONDS COMMAND...: runs it and remembers how it ended.
step() {
  name=$1
  limit=$2
  shift 2
  echo "== $name (at most $limit s)"
  begin=$(date +%s)
  timeout -k 10 "$limit" "$@"
  code=$?
  took=$(($(date +%s) - begin))
  case $code in
    0) note "passed   $name ($took s)" ;;
    124 | 137) note "FAILED   $name: stopped after $limit s"; status=1 ;;
    *) note "FAILED   $name: exit code $code ($took s)"; status=1 ;;
  esac
  return $code
}

finish() {
  echo "== summary$summary"
  echo "results: $out"
  exit $status
}

if [ "$build" = yes ]; then
  TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0} SCRD_FAST_CUDA=1 SCRD_FAST_NATIVE=1 \
    step "build in place" 120 "$python" setup.py -q build_ext --inplace || {
    note "skipped  everything else: nothing was built"
    finish
  }
else
  note "skipped  build in place: --no-build"
fi

# A pytest of any version and plug-ins: the project's settings name some that may be missing.
step "tests marked cuda" 140 "$python" -m pytest -q -ra -c /dev/null --rootdir "$root" -p no:cacheprovider \
  -W ignore::pytest.PytestUnknownMarkWarning -m cuda python_tests/ops python_tests/bench/test_harness.py

sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2>/dev/null)
if [ -n "$sanitizer" ]; then
  for tool in memcheck racecheck; do
    # Without torch's cache each tensor is an allocation of its own, whose bounds memcheck knows.
    step "compute-sanitizer $tool" 30 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      "$sanitizer" --tool $tool --error-exitcode 9 "$python" benchmarks/sanitize.py
  done
else
  note "skipped  compute-sanitizer: not found on PATH nor in ${CUDA_HOME:-/usr/local/cuda}/bin"
fi

operators=$("$python" -c "from scrd_fast.bench.cases import operators; print(*operators())") || {
  note "FAILED   benchmarks: scrd_fast.bench does not import"
  status=1
  finish
}
share=$((200 / $(echo "$operators" | wc -w)))
for op in $operators; do
  # After its own limit measure.py begins no case and no compilation; the last case may take the seconds beyond it, and
  # the JSON has all cases before it even if that is stopped. With more seconds, measure.py comes to all cases.
  step "benchmark $op" "$share" "$python" benchmarks/measure.py "$op" "$out" $((share - 35))
done
if "$python" -c "import lightning_fabric, pydantic, timm" 2>/dev/null; then
  step "benchmark of a training step" 70 "$python" benchmarks/bench_train.py --device cuda --steps 5 --rounds 1 \
    --batch-size 16 --out "$out/train-gpu.json"
else
  note "skipped  benchmark of a training step: needs lightning_fabric, pydantic and timm"
fi
finish
