"""The CUDA kernels on the host: the same `.cu`, a block's threads as real threads (tests/csrc/emulation).

Each runs its C++ test under AddressSanitizer with UBSan and under ThreadSanitizer, covers the device code, and notices
every defect that is planted in it.
"""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.csrc import harness
from tests.csrc.programs import PROGRAMS

SANITIZERS = ["address", "thread"]
MUTATIONS = [(program, mutation) for program in PROGRAMS for mutation in program.mutations]


@pytest.fixture(scope="module")
def builds():
    """Of each program and sanitizer; two compilers at a time, as of `mutants`."""
    keys = [(program, sanitizer) for program in PROGRAMS for sanitizer in SANITIZERS]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(keys, pool.map(lambda key: harness.build(*key), keys), strict=True))


@pytest.fixture(scope="module")
def mutants(tmp_path_factory):
    """Of each program and mutation: what its run said, or None where it hangs."""
    folder = tmp_path_factory.mktemp("mutants")

    def outcome(item):
        number, (program, mutation) = item
        csrc = harness.mutated(mutation, folder / str(number))
        try:
            return harness.run(harness.build(program, f"{mutation.sanitizer} mutant", csrc), stop_at_first=True)
        except subprocess.TimeoutExpired:
            return None

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(MUTATIONS, pool.map(outcome, enumerate(MUTATIONS)), strict=True))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_against_float64(builds, program, sanitizer):
    done = harness.run(builds[program, sanitizer])
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert " 0 failed" in done.stdout


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_device_code_is_covered(program, tmp_path):
    coverage = harness.line_coverage(program, tmp_path)
    ran = sum(count for count, _ in coverage.values())
    missed = {name: lines for name, (_, lines) in coverage.items() if lines}
    assert program.source in coverage
    assert ran >= 0.9 * (ran + sum(map(len, missed.values()))), missed


@pytest.mark.parametrize(
    ("program", "mutation"), MUTATIONS, ids=[f"{program.name}-{mutation.name}" for program, mutation in MUTATIONS]
)
def test_notices(mutants, program, mutation):
    done = mutants[program, mutation]
    assert done is None or done.returncode != 0, f"{mutation.name} passed: {done.stdout}"
