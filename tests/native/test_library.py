"""The library of the ops is one file for every Python, and for every torch from 2.10 on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyrl.ops._library import _LOADED as LIBRARY

ROOT = Path(__file__).resolve().parents[2]
NEEDED = {"libtorch.so", "libtorch_cpu.so", "libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6",
          "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}  # fmt: skip
# What it may take from others: torch's C interface, and versioned symbols of the C and C++ runtime.
STABLE = re.compile(r"(aoti_torch|torch)_\w+|\w+@+(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+|_ITM_\w+|__gmon_start__")
CUDA_ONLY = {"aoti_torch_get_current_cuda_stream"}

USE = """
import sys
for name in ("vllm", "megatron", "transformers", "flash_attn", "pydantic", "typer", "rich", "pybind11"):
    sys.modules[name] = None  # importing it is an error
import torch
from pyrl import ops
logprobs, entropy = ops.logprob_entropy(torch.zeros(2, 8), torch.tensor([0, 7]))
torch.testing.assert_close(logprobs, torch.full((2,), -torch.tensor(8.0).log().item()))
assert ops.select_top(torch.arange(4.0), torch.ones(4, dtype=torch.bool), 0.5, token_uids=torch.arange(4)).sum() == 2
try:
    ops.build_info()
except ImportError as error:
    print(error)
"""


def tool(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def start(library: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYRL_OPS_LIBRARY": str(library), "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)


def symbols(library: Path) -> dict[str, str]:
    """Undefined symbol -> its kind: U, or w where it may be missing."""
    lines = tool("nm", "--dynamic", "--undefined-only", str(library)).splitlines()
    return {name: kind for kind, name in (line.split()[-2:] for line in lines)}


def test_it_needs_torch_and_the_runtime_alone():
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", tool("readelf", "--dynamic", "--wide", str(LIBRARY))))
    assert {"libtorch.so", "libtorch_cpu.so"} <= needed <= NEEDED


def test_it_takes_nothing_of_python_nor_of_torchs_cpp_interface():
    taken = symbols(LIBRARY)
    assert {"torch_library_impl", "aoti_torch_get_dim"} <= taken.keys()
    assert not [name for name in taken if not STABLE.fullmatch(name)]
    assert not {name for name in CUDA_ONLY & taken.keys() if taken[name] != "w"}, "a torch without CUDA has it not"


def test_another_extension_is_noticed():
    """The binding of torch itself takes both."""
    import torch

    taken = symbols(Path(torch.__file__).parent / "lib" / "libtorch_python.so")
    refused = {name for name in taken if not STABLE.fullmatch(name)}
    assert any(name.startswith("Py") for name in refused) and any("3c10" in name for name in refused)


def test_it_works_alone(tmp_path):
    """Without the Python module that knows what was built, and with no package but torch."""
    done = start(shutil.copy(LIBRARY, tmp_path), USE)
    assert done.returncode == 0, done.stderr
    assert "no _build_info module for this Python; build it" in done.stdout


@pytest.mark.parametrize("name", ["missing.so", "."])
def test_a_library_that_is_not_there_is_an_error(tmp_path, name):
    done = start(tmp_path / name, "import pyrl.ops")
    assert done.returncode != 0
    assert f"PYRL_OPS_LIBRARY: got {tmp_path}" in done.stderr
    assert "wanted the path of a built libpyrl_ops.so" in done.stderr
