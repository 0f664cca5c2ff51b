"""Compiles a CUDA source to machine code and reads it: resources as ptxas reports them, instructions from nvdisasm."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-Wall,-Wextra,-Werror", "-Werror", "all-warnings",
         f"-I{CSRC}", f"-I{CSRC / 'cuda'}", "-Xptxas", "-v"]  # fmt: skip
SECONDS = 300


def find_nvcc() -> str | None:
    return shutil.which("nvcc")


def needs(tool: str | None, without: str, remedy: str) -> None:
    """Without `tool`, skips the test, or fails it in CI (the environment says CI), where all is checked."""
    if tool is not None:
        return
    if os.environ.get("CI", "").lower() in ("", "0", "false"):
        pytest.skip(f"{without}: {remedy}")
    pytest.fail(f"{without}, and this is CI: {remedy}", pytrace=False)


def needs_nvcc() -> None:
    remedy = "put the bin folder of a CUDA toolkit (12.8 or later) on PATH, or fetch one with `make nvcc`"
    needs(find_nvcc(), "NO CUDA CODE IS CHECKED: no nvcc on PATH", remedy)


def needs_nvdisasm() -> None:
    remedy = "pip install nvidia-cuda-nvdisasm (it is in the lock)"
    needs(find_nvdisasm(), "NO INSTRUCTION IS CHECKED: no nvdisasm", remedy)


def find_nvdisasm() -> str | None:
    """The toolkit's, or the one of the package nvidia-cuda-nvdisasm, which the lock holds: some toolkits lack it."""
    if tool := shutil.which("nvdisasm"):
        return tool
    nvidia = importlib.util.find_spec("nvidia")
    for folder in nvidia.submodule_search_locations or () if nvidia else ():
        for tool in sorted(Path(folder).glob("*/bin/nvdisasm")):
            return str(tool)
    return None


@dataclass
class Kernel:
    """Of one instantiation of a kernel, for one architecture. Sizes in bytes."""

    name: str
    registers: int
    stack: int
    spills: int
    instructions: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    """Of the disassembly: label -> index of the instruction that follows."""

    def loops(self) -> list[list[str]]:
        """The instructions from each label to a branch back to it."""
        found = []
        for end, instruction in enumerate(self.instructions):
            target = re.search(r"\bBRA\b.*?(\.L_\w+)", instruction)
            if target and self.labels[target[1]] <= end:
                found.append(self.instructions[self.labels[target[1]] : end + 1])
        return found

    def hot_loop(self) -> list[str]:
        """The loop over the vocabulary: the one with 16-byte loads, and exponentials; columns before and after, or rows
        that are never aligned, have loops of their own."""
        wide = [loop for loop in self.loops() if any(is_wide(opcode) for opcode in opcodes(loop))]
        assert wide, f"{self.name}: no loop with 16-byte loads"
        return max(wide, key=lambda loop: opcodes(loop)["MUFU.EX2"])


def is_wide(opcode: str) -> bool:
    return opcode.startswith("LDG") and opcode.endswith(".128")


def opcodes(instructions: list[str]) -> Counter[str]:
    """`@!P0 LDG.E.EF.128 R4, ...` counts for LDG.E.EF.128."""
    return Counter(re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0] for instruction in instructions)


def compile_cubin(source: str, architecture: str, folder: Path, *extra: str) -> tuple[Path, str]:
    """The machine code of csrc/`source` and what ptxas said about it; a warning is an error."""
    cubin = folder / f"{Path(source).stem}.{architecture}.cubin"
    command = [find_nvcc(), *FLAGS, *extra, "-cubin", f"-arch={architecture}", str(CSRC / source), "-o", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return cubin, done.stdout + done.stderr


def read_resources(report: str) -> dict[str, Kernel]:
    """Symbol -> kernel, from `ptxas -v`."""
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, "
        r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
        re.DOTALL,
    )
    return {
        m["name"]: Kernel(m["name"], int(m["registers"]), int(m["stack"]), int(m["stores"]) + int(m["loads"]))
        for m in pattern.finditer(report)
    }


def disassemble(cubin: Path, kernels: dict[str, Kernel]) -> None:
    """Fills in the instructions of `kernels`."""
    command = [find_nvdisasm(), "-c", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS).stdout
    kernel = None
    for line in text.splitlines():
        if section := re.match(r"\.text\.(\w+):$", line):
            kernel = kernels[section[1]]
        elif kernel and (label := re.match(r"(\.L_\w+):", line)):
            kernel.labels[label[1]] = len(kernel.instructions)
        elif kernel and (instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(\S.*?)\s*;", line)):
            kernel.instructions.append(instruction[1])
