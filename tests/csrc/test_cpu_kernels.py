"""The CPU ops in a C++ program (cpu_kernels_test.cpp) under AddressSanitizer with UBSan, for each instruction set."""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.csrc import harness

TORCH = Path(torch.__file__).parent
X86 = platform.machine() in ("x86_64", "AMD64")
COMPILE = [
    *harness.COMPILE, *harness.FLAGS["address"],
    "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden",
    "-DTORCH_TARGET_VERSION=0x020A000000000000", f"-isystem{TORCH / 'include'}",
]  # fmt: skip
CSRC = harness.ROOT / "csrc"


def build() -> Path:
    """Every *_cpu.cpp, the row kernels of every instruction set and the test; against torch, but without Python."""
    sources = [harness.TESTS / "cpu_kernels_test.cpp", *sorted(CSRC.glob("*/*_cpu.cpp"))]
    sources.append(CSRC / "logprob_entropy" / "rows_generic.cpp")
    compilers = [([*COMPILE, *(["-DPYRL_HAVE_AVX2=1"] if X86 else [])], source) for source in sources]
    if X86:
        compilers.append(([*COMPILE, "-mavx2", "-mfma"], CSRC / "logprob_entropy" / "rows_avx2.cpp"))
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda item: str(harness.compile_object(*item, CSRC)), compilers))
    libraries = [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    return harness.link([*harness.COMPILE, *harness.FLAGS["address"], *objects, *libraries], "cpu_kernels")


@pytest.fixture(scope="module")
def program():
    return build()


@pytest.mark.parametrize("kernels", ["", "generic"] if X86 else [""], ids=lambda kernels: kernels or "default")
def test_against_float64(program, monkeypatch, tmp_path, kernels):
    if kernels:
        monkeypatch.setenv("PYRL_CPU_KERNELS", kernels)
    else:
        monkeypatch.delenv("PYRL_CPU_KERNELS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    done = harness.run(program, tmp_path)
    assert harness.passed(done), f"{done.stdout}\n{done.stderr}"
