"""The CUDA kernels on the host: the same `.cu`, a block's threads as real threads (tests/csrc/emulation).

Each runs its C++ test under AddressSanitizer with UBSan and under ThreadSanitizer, covers the device code, and notices
every defect that is planted in it.
"""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.csrc import harness
from tests.csrc.programs import PROGRAMS

SANITIZERS = ["address", "thread"]
MUTATIONS = [(program, mutation) for program in PROGRAMS for mutation in program.mutations]
PROCESSES = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("emulation")


@pytest.fixture(scope="module")
def programs(folder):
    """Of each program and sanitizer: the binary, what its run said, and the folder with its coverage."""

    def outcome(key):
        program, sanitizer = key
        counts = folder / f"{program.name} {sanitizer}"
        binary = harness.build(program, sanitizer)
        return binary, harness.run(binary.path, counts), counts

    keys = [(program, sanitizer) for program in PROGRAMS for sanitizer in SANITIZERS]
    with ThreadPoolExecutor(PROCESSES) as pool:
        return dict(zip(keys, pool.map(outcome, keys), strict=True))


@pytest.fixture(scope="module")
def mutants(folder):
    """Of each program and mutation: what its run said, or the error that kept it from being built or from ending."""

    def outcome(item):
        number, (program, mutation) = item
        try:
            binary = harness.build(program, mutation.sanitizer, harness.mutated(mutation, folder / f"mutant {number}"))
            return harness.run(binary.path, folder / f"mutant {number}", stop_at_first=True)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            return error

    with ThreadPoolExecutor(PROCESSES) as pool:
        return dict(zip(MUTATIONS, pool.map(outcome, enumerate(MUTATIONS)), strict=True))


def assert_passed(done):
    assert harness.passed(done), f"{done.stdout}\n{done.stderr}"


def assert_noticed(done, sanitizer):
    assert isinstance(done, subprocess.CompletedProcess), done
    assert harness.noticed(done, sanitizer), f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_against_float64(programs, program, sanitizer):
    assert_passed(programs[program, sanitizer][1])


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_device_code_is_covered(programs, program):
    binary, _, counts = programs[program, "address"]
    coverage = harness.line_coverage(program, binary, counts)
    ran = sum(count for count, _ in coverage.values())
    missed = {name: lines for name, (_, lines) in coverage.items() if lines}
    assert program.source in coverage
    assert ran >= 0.9 * (ran + sum(map(len, missed.values()))), missed


@pytest.mark.parametrize(
    ("program", "mutation"), MUTATIONS, ids=[f"{program.name}-{mutation.name}" for program, mutation in MUTATIONS]
)
def test_notices(programs, mutants, program, mutation):
    """As against the program without the defect, built with the same flags."""
    assert_passed(programs[program, mutation.sanitizer][1])
    assert_noticed(mutants[program, mutation], mutation.sanitizer)


@pytest.mark.parametrize(
    ("sanitizer", "status", "said", "counts"),
    [
        ("address", 1, "FAILED row 3: got 1, wanted 2\n", True),
        ("address", 1, "==1==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x62", True),
        ("address", 1, "rows.h:3:5: runtime error: signed integer overflow", True),
        ("address", 0, "FAILED row 3\n", False),
        ("address", 127, "error while loading shared libraries: libasan.so.8: cannot open shared object file", False),
        ("address", 3, "emulation: a block whose threads are no multiple of 32", False),
        ("address", -9, "", False),
        ("thread", 66, "WARNING: ThreadSanitizer: data race (pid=1)", True),
        ("thread", 66, "FATAL: ThreadSanitizer: unexpected memory mapping 0x5", False),
        ("thread", 1, "FAILED row 3: got 1, wanted 2\n", False),
    ],
)
def test_only_a_finding_counts(sanitizer, status, said, counts):
    for out, err in ((said, ""), ("", said)):
        assert harness.noticed(subprocess.CompletedProcess([], status, out, err), sanitizer) == counts


def test_a_mutant_that_cannot_be_built_counts_for_nothing():
    with pytest.raises(AssertionError, match="no such file"):
        assert_noticed(AssertionError("g++ failed: no such file"), "address")


def test_a_program_that_checks_nothing_has_not_passed():
    for status, said in ((0, ""), (1, "3 checks, 0 failed\n"), (0, "3 checks, 2 failed\n")):
        assert not harness.passed(subprocess.CompletedProcess([], status, said, ""))
    assert harness.passed(subprocess.CompletedProcess([], 0, "3 checks, 0 failed\n", ""))


def conditionals(text: str) -> list[str]:
    """The lines that choose what is compiled."""
    joined = re.sub(r"\\\n", " ", text)  # a directive may go on
    code = re.sub(r"/\*.*?\*/|//[^\n]*", " ", joined, flags=re.DOTALL)
    return re.findall(r"^[ \t]*#[ \t]*(?:if|ifdef|ifndef|elif|elifdef|elifndef|else)\b.*", code, re.MULTILINE)


@pytest.mark.parametrize("source", sorted(harness.ROOT.glob("csrc/*/*.cu")), ids=lambda source: source.name)
def test_no_kernel_source_knows_who_compiles_it(source: Path):
    """What runs here is what a GPU runs: they differ by device.cuh alone."""
    assert conditionals(source.read_text()) == []
    names = {macro for macro in ("__CUDA_ARCH__", "__CUDACC__", "__NVCC__", "_Pragma") if macro in source.read_text()}
    assert not names


def test_a_conditional_is_noticed():
    text = "#if A\n  # ifdef B\n#pragma unroll\n// #if C\n/* x */ # \\\nifndef D\n#include <if>\nif (x) {}\n#endif\n"
    assert [line.split() for line in conditionals(text)] == [["#if", "A"], ["#", "ifdef", "B"], ["#", "ifndef", "D"]]
