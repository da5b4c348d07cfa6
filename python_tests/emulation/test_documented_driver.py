# SPDX-License-Identifier: Apache-2.0
"""The driver that README.md shows is one that compiles."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from toolchain import CXX, ROOT, need_host_compiler

HERE = Path(__file__).parent
LAUNCHER = """#include "driver.h"
#include "common/kernel_prelude.cuh"
namespace scrd { template <typename T> void launch_scale(T* x, int64_t count, double factor, void* stream); }
"""


def test_the_example_of_a_driver_compiles() -> None:
    (example,) = re.findall(r"```cpp\n(.*?)```", (HERE / "README.md").read_text(), flags=re.DOTALL)
    flags = ["-std=c++17", "-fsyntax-only", f"-I{ROOT / 'csrc'}", f"-I{HERE}", *need_host_compiler()]
    done = subprocess.run(
        [CXX, *flags, "-x", "c++", "-"], input=LAUNCHER + example, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
