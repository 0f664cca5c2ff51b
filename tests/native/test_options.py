"""What a build says where it cannot be done as asked: CMake's configure step alone, which takes seconds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from tests.native import cuda_code

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent  # cmake and ninja are of the lock
SECONDS = 300


def run(command: list[str], **variables: str) -> tuple[int, str]:
    """Exit status, and what was said, on one line. CUDACXX, CMAKE_ARGS and PYRL_CUDA are those of `variables` alone."""
    kept = {name: value for name, value in os.environ.items() if name not in ("CUDACXX", "CMAKE_ARGS", "PYRL_CUDA")}
    environment = kept | {"PATH": f"{TOOLS}:{kept['PATH']}"} | variables
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


def configure(folder: Path, *options: str, python: str = sys.executable, **variables: str) -> tuple[int, str]:
    cmake = shutil.which("cmake", path=f"{TOOLS}:{os.environ['PATH']}")
    assert cmake, "the lock holds cmake"
    where = ["-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
    return run([cmake, *where, f"-DPython_EXECUTABLE={python}", *options], **variables)


def torch_for(folder: Path, cuda: str) -> dict[str, str]:
    """Variables under which Python imports a torch built for CUDA `cuda`: all that CMake asks of one. No such torch can
    be installed beside the lock's."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(
        f"import types\n__version__ = '2.13.0+cuda'\nversion = types.SimpleNamespace(cuda='{cuda}')\n"
    )
    return {"PYTHONPATH": str(folder)}


def nvcc_release() -> str:
    """As `torch.version.cuda` has it: 13.0."""
    cuda_code.needs_nvcc()
    said = subprocess.run([cuda_code.find_nvcc(), "--version"], check=True, capture_output=True, text=True).stdout
    return re.search(r"release (\d+\.\d+)", said)[1]


def test_a_setting_that_is_none_stops(tmp_path):
    status, said = configure(tmp_path, "-DPYRL_CUDA=banana")
    assert status != 0 and "PYRL_CUDA is 'banana': set it to on, off or auto" in said


@pytest.mark.parametrize(("version", "old"), [("3.25.1", True), ("3.26.0", False)])
def test_an_old_cmake_stops_with_the_remedy(tmp_path, version, old):
    """As Debian 12's. The check comes before anything an old one could stumble over."""
    first, *_ = (ROOT / "CMakeLists.txt").read_text().splitlines()
    script = tmp_path / "check.cmake"
    script.write_text(f"set(CMAKE_VERSION {version})\n{first.replace('${CMAKE_CURRENT_LIST_DIR}', str(ROOT))}\n")
    status, said = run(["cmake", "-P", str(script)])
    assert (status != 0) == old, said
    assert ("CMake 3.25.1 is too old, 3.26 or later is needed" in said and "pip install 'cmake>=3.26'" in said) == old


def test_on_without_nvcc_stops_with_the_remedy(tmp_path):
    status, said = configure(tmp_path, "-DPYRL_CUDA=on", CUDACXX="/nowhere/nvcc")
    assert status != 0 and "PYRL_CUDA=on, but no CUDA compiler was found" in said
    assert "Install the CUDA toolkit" in said and "PYRL_CUDA=off" in said


def test_auto_without_nvcc_builds_the_cpu_ops_and_says_so(tmp_path):
    status, said = configure(tmp_path, CUDACXX="/nowhere/nvcc")
    assert status == 0, said
    assert "CPU ops (no nvcc found, and PYRL_CUDA=auto)" in said
    rules = (tmp_path / "build.ninja").read_text()
    assert "logprob_entropy_cpu.cpp" in rules and ".cu" not in rules


@pytest.mark.late
def test_auto_without_nvcc_stops_beside_a_torch_for_cuda(tmp_path):
    status, said = configure(tmp_path / "build", CUDACXX="/nowhere/nvcc", **torch_for(tmp_path, "13.0"))
    assert status != 0 and "torch 2.13.0+cuda is a build for CUDA 13.0, but no CUDA compiler was found" in said
    assert "Install the CUDA toolkit 13 and put its nvcc on PATH" in said and "with PYRL_CUDA=off" in said


@pytest.mark.late
def test_off_builds_the_cpu_ops_beside_a_torch_for_cuda(tmp_path):
    status, said = configure(tmp_path / "build", "-DPYRL_CUDA=off", **torch_for(tmp_path, "13.0"))
    assert status == 0, said
    assert "CPU ops (PYRL_CUDA=off), against torch 2.13.0+cuda" in said


@pytest.mark.late
def test_an_nvcc_of_another_major_version_stops(tmp_path):
    release = nvcc_release()
    other = int(release.split(".")[0]) - 1
    torch = torch_for(tmp_path, f"{other}.0")
    for setting in ("auto", "on"):  # in one folder: looking for nvcc takes long
        status, said = configure(tmp_path / "build", f"-DPYRL_CUDA={setting}", **torch)
        assert status != 0 and f"torch 2.13.0+cuda is a build for CUDA {other}.0, but" in said
        assert f"nvcc is nvcc {release}." in said and "the major versions differ" in said
        assert f"Put an nvcc of CUDA {other} first on PATH" in said and "with PYRL_CUDA=off" in said
        assert f"remove {tmp_path / 'build'}, which remembers" in said


@pytest.mark.late
def test_an_nvcc_that_came_later_is_found_and_may_be_of_another_minor_version(tmp_path):
    """In the build folder of the failure, as after following its remedy."""
    major = nvcc_release().split(".")[0]
    torch = torch_for(tmp_path, f"{major}.99")
    status, said = configure(tmp_path / "build", CUDACXX="/nowhere/nvcc", **torch)
    assert status != 0, said
    status, said = configure(tmp_path / "build", **torch)
    assert status == 0 and "CPU and CUDA ops" in said, said


def test_without_pybind11_the_ops_are_built_alone(tmp_path):
    status, said = configure(tmp_path, "-DPYRL_CUDA=off", "-DCMAKE_DISABLE_FIND_PACKAGE_pybind11=ON")
    assert status == 0, said
    assert "without pyrl.ops.build_info: pybind11 or Python's headers are missing" in said
    rules = (tmp_path / "build.ninja").read_text()
    assert "libpyrl_ops.so" in rules and "_build_info" not in rules


def test_auto_with_nvcc_builds_every_kernel_for_each_architecture(tmp_path):
    cuda_code.needs_nvcc()
    status, said = configure(tmp_path)
    assert status == 0, said
    assert "CPU and CUDA ops (sm_80 sm_90 sm_100 compute_100; nvcc" in said
    rules = (tmp_path / "build.ninja").read_text()
    for source in (*ROOT.glob("csrc/*/*.cu"), *ROOT.glob("csrc/*/*_cuda.cpp")):
        assert f"/{source.name}.o" in rules, f"{source} is in no target"
    assert {"sm_80", "sm_90", "sm_100", "compute_100"} <= set(re.findall(r"(?:sm|compute)_\d+", rules))


def test_without_torch_the_build_stops_with_the_remedy(tmp_path):
    """As under pip's build isolation."""
    venv.create(tmp_path / "bare", with_pip=False)
    status, said = configure(tmp_path / "build", "-DPYRL_CUDA=off", python=str(tmp_path / "bare" / "bin" / "python"))
    assert status != 0 and "torch cannot be imported by" in said
    assert "pip install --no-build-isolation --no-deps ." in said


def test_pip_takes_the_setting_from_the_environment(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path)]
    status, said = run([*command, "-C", f"build-dir={tmp_path / 'build'}", "."], PYRL_CUDA="banana")
    assert status != 0 and "PYRL_CUDA is 'banana'" in said


def test_pip_takes_auto_where_the_environment_has_none():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]
    assert settings["cmake"]["define"]["PYRL_CUDA"] == {"env": "PYRL_CUDA", "default": "auto"}
