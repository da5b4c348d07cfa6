# SPDX-License-Identifier: Apache-2.0
"""CPU kernels under AddressSanitizer and UBSan, and what the memory of the anomaly map's relies on."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    "csrc/contrastive_distance/contrastive_distance_cpu_kernel.cpp",
    "csrc/cosine_distances/cosine_distances_cpu_kernel.cpp",
    "csrc/anomaly_map/anomaly_map_cpu_kernel.cpp",
    "csrc/anomaly_map/axis_table.cpp",
    "python_tests/ops/cpu_kernels_sanitized.cpp",
]
ISAS = {"baseline": [], "avx2": ["-mavx2", "-mfma", "-mf16c"]}
CXX = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
BANDS = """
#include <cstdio>
#include <initializer_list>
#include "anomaly_map/anomaly_map.h"
using namespace scrd::maps;
int main() {
  for (int64_t source = 1; source < 40; ++source)
    for (int64_t target = 1; target < 40; ++target)
      for (const double sigma : {0.0, 0.3, 1.0, 4.0, 30.0})
        for (const bool mirror : {false, true}) {
          const Axis axis{source, target, sigma, mirror};
          Band before{0, 0};
          for (int64_t place = 0; place < target; ++place) {
            const Band at = band(axis, place);
            bool right = at.first >= 0 && at.end <= source && at.first < at.end;
            right = right && at.end - at.first <= band_limit(axis) && at.first >= before.first && at.end >= before.end;
            before = at;
            for (int64_t offset = -axis.radius(); offset <= axis.radius(); ++offset) {
              const Between one = between(axis, folded(place + offset, target, mirror));
              right = right && one.first >= at.first && one.first + (one.share > 0 ? 1 : 0) < at.end;
            }
            if (!right) return std::printf("%ld %ld %g %d: row %ld\\n", source, target, sigma, mirror, place), 1;
          }
        }
}
"""


def compile_and_run(folder: Path, flags: list[str], sources: list[str], *arguments: str) -> str:
    if shutil.which(CXX) is None:
        pytest.skip(f"needs {CXX}")
    program = folder / "program"
    built = subprocess.run(
        [CXX, *flags, f"-I{ROOT / 'csrc'}", *sources, "-o", program], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("isa", ISAS)
def test_kernels_stay_in_their_memory(isa: str, tmp_path: Path) -> None:
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    if not {flag.removeprefix("-m") for flag in ISAS[isa]} <= set(flags):
        pytest.skip(f"this CPU does not have {isa}")
    sources = [str(ROOT / source) for source in SOURCES]
    errors = compile_and_run(tmp_path, [*FLAGS, *ISAS[isa], f"-DSCRD_ISA={isa}"], sources, "40").split()
    assert all(float(error) < 1e-5 for error in errors), errors


def test_every_row_lies_in_its_band_and_no_band_is_longer_than_the_limit(tmp_path: Path) -> None:
    source = tmp_path / "bands.cpp"
    source.write_text(BANDS)
    compile_and_run(tmp_path, ["-std=c++17", "-O2", "-ffp-contract=off"], [str(source)])
