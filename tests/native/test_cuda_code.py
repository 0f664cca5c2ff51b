"""The CUDA kernels as machine code, for each architecture that is built: what a machine without a GPU can know of their
speed. Instructions are counted, not timed: the budget is the one of csrc/logprob_entropy/logprob_entropy_kernels.h.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.native import cuda_code
from tests.native.cuda_code import Kernel, compile_cubin, opcodes

ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]
SOURCES = sorted(str(file.relative_to(cuda_code.CSRC)) for file in cuda_code.CSRC.glob("*/*.cu"))
ROWS = "logprob_entropy/logprob_entropy.cu"
PROCESSES = 2

# Registers a thread may have: 65,536 a multiprocessor, for 8 blocks of 128 threads. Any kernel: 255.
REGISTERS = {"stats_kernel": 64, "backward_kernel": 64}

# Of bf16 in a thread's turn of its loop: four 16-byte loads.
COLUMNS = 32
# In a turn: the loop, its addresses, and what the last turn, cut short, needs besides, though other turns skip it.
AROUND = 64


@pytest.fixture(autouse=True, scope="module")
def nvcc():
    cuda_code.needs_nvcc()


@pytest.fixture(scope="module")
def compiled(nvcc, tmp_path_factory) -> dict[tuple[str, str], dict[str, Kernel]]:
    """(source, architecture) -> its kernels by symbol. Everything is compiled once, PROCESSES at a time."""
    folder = tmp_path_factory.mktemp("cubin")
    jobs = [(source, architecture) for source in SOURCES for architecture in ARCHITECTURES]
    with ThreadPoolExecutor(PROCESSES) as pool:
        return dict(zip(jobs, pool.map(lambda job: read(*job, folder), jobs), strict=True))


def read(source: str, architecture: str, folder: Path, *extra: str) -> dict[str, Kernel]:
    cubin, report = compile_cubin(source, architecture, folder, *extra)
    kernels = cuda_code.read_resources(report)
    if source == ROWS and cuda_code.find_nvdisasm():
        cuda_code.disassemble(cubin, kernels)
    return kernels


def kernels_named(kernels: dict[str, Kernel], name: str) -> list[Kernel]:
    return [kernel for symbol, kernel in kernels.items() if f"{len(name)}{name}" in symbol]


def assert_in_registers(kernels: dict[str, Kernel]) -> None:
    for symbol, kernel in kernels.items():
        assert (kernel.spills, kernel.stack) == (0, 0), f"{symbol}: {kernel.spills} B spilled, stack {kernel.stack} B"
        most = next((most for name, most in REGISTERS.items() if name in symbol), 255)
        assert 0 < kernel.registers <= most, f"{symbol}: {kernel.registers} registers, at most {most} wanted"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES)
def test_nothing_is_spilled(compiled, source, architecture):
    """Compiled without a warning, too: one is an error."""
    text = (cuda_code.CSRC / source).read_text()
    kernels = compiled[source, architecture]
    assert len(kernels) >= text.count("PYRL_KERNEL") > 0, "ptxas reports every kernel"
    assert_in_registers(kernels)


def test_a_spill_is_noticed(tmp_path):
    with pytest.raises(AssertionError, match="B spilled"):
        assert_in_registers(read(ROWS, "sm_90", tmp_path, "-maxrregcount=24"))


def test_a_warning_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "unused.cu").write_text('#include "device.cuh"\nPYRL_KERNEL k(int* to) { int unused = 1; *to = 2; }\n')
    monkeypatch.setattr(cuda_code, "CSRC", tmp_path)
    with pytest.raises(AssertionError, match="unused"):
        compile_cubin("unused.cu", "sm_90", tmp_path)


class TestInstructions:
    """Of `logprob_entropy`: the only op whose time is that of the whole [T, V]."""

    @pytest.fixture(autouse=True)
    def nvdisasm(self):
        cuda_code.needs_nvdisasm()

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_logits_are_read_16_bytes_at_a_time(self, compiled, architecture):
        kernels = compiled[ROWS, architecture]
        stats, backward = kernels_named(kernels, "stats_kernel"), kernels_named(kernels, "backward_kernel")
        assert (len(stats), len(backward)) == (3, 10)
        for kernel in stats + backward:
            assert_wide(kernel, stores=kernel in backward)

    def test_a_narrow_load_is_noticed(self, compiled):
        kernel = kernels_named(compiled[ROWS, "sm_90"], "stats_kernel")[0]
        narrow = [instruction.replace(".128", ".64") for instruction in kernel.instructions]
        with pytest.raises(AssertionError, match="no loop with 16-byte loads"):
            assert_wide(Kernel(kernel.name, 1, 0, 0, narrow, kernel.labels), stores=False)

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_statistics_of_bf16_keep_to_the_budget(self, compiled, architecture):
        """7.5 a logit and 10 to raise the maximum. In the time of 2 bytes there are 19.8 a logit."""
        (kernel,) = [k for k in kernels_named(compiled[ROWS, architecture], "stats_kernel") if "BFloat16" in k.name]
        assert_within(kernel, 7.5 * COLUMNS + 10)

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    @pytest.mark.parametrize("entropy", [False, True])
    def test_the_gradient_of_bf16_keeps_to_the_budget(self, compiled, architecture, entropy):
        """7.5 a logit, 5.5 without entropy. In the time of 4 bytes there are 39.7."""
        kernels = kernels_named(compiled[ROWS, architecture], "backward_kernel")
        (kernel,) = [k for k in kernels if f"8BFloat16ES3_Lb{int(entropy)}" in k.name]
        assert_within(kernel, (7.5 if entropy else 5.5) * COLUMNS)

    def test_one_more_instruction_a_logit_is_noticed(self, compiled):
        (kernel,) = [k for k in kernels_named(compiled[ROWS, "sm_90"], "stats_kernel") if "BFloat16" in k.name]
        with pytest.raises(AssertionError, match="instructions in a turn"):
            assert_within(kernel, 6.5 * COLUMNS + 10)


def memory(instructions: list[str], kind: str) -> set[str]:
    return {opcode for opcode in opcodes(instructions) if opcode.split(".")[0] == kind}


def assert_wide(kernel: Kernel, *, stores: bool) -> None:
    """In its hot loop, every access of global memory; in all of it, none of local memory, where spills would go."""
    loop = kernel.hot_loop()
    assert opcodes(loop)["MUFU.EX2"] >= 16, f"{kernel.name}: four fp32 loads make 16 exponentials"
    for kind in ("LDG", "STG") if stores else ("LDG",):
        accesses = memory(loop, kind)
        assert accesses, f"{kernel.name}: no {kind} in its loop"
        assert all(access.endswith(".128") for access in accesses), f"{kernel.name}: {accesses}"
    assert not memory(kernel.instructions, "LDL") | memory(kernel.instructions, "STL")


def assert_within(kernel: Kernel, budget: float) -> None:
    """Instructions and exponentials of bf16 in a turn of the hot loop; nothing in double precision there."""
    loop = kernel.hot_loop()
    count = opcodes(loop)
    assert count["MUFU.EX2"] in (COLUMNS, COLUMNS + 1), f"{kernel.name}: {count['MUFU.EX2']} exponentials"
    most = budget + AROUND
    assert len(loop) <= most, f"{kernel.name}: {len(loop)} instructions in a turn, at most {most} wanted: {count}"
    assert not [opcode for opcode in count if opcode.startswith(("DADD", "DMUL", "DFMA", "F2F.F64", "F2F.F32.F64"))]
