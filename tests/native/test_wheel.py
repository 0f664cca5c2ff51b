"""The wheel: what it holds, and that it works where nothing else of this checkout is."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.late

ROOT = Path(__file__).resolve().parents[2]
USE = """
import pathlib, sys
import torch, pyrl
from pyrl import ops
from pyrl.analysis import fit_entropy_law
assert pathlib.Path(pyrl.__file__).is_relative_to(sys.prefix), pyrl.__file__
logprobs, entropy = ops.logprob_entropy(torch.zeros(2, 8), torch.tensor([0, 7]))
torch.testing.assert_close(entropy, torch.full((2,), 8.0).log())
print(ops.build_info()["version"], fit_entropy_law([1, 2, 3, 4, 5], [1, 2, 4, 4, 5]).a)
"""


def said(command: list[str], folder: Path, seconds: float = 900.0) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-build-isolation", "--no-deps", "--wheel-dir", str(folder)]
    said([sys.executable, "-m", "pip", "wheel", "-qq", *options, str(ROOT)], ROOT)
    (found,) = folder.glob("*.whl")
    return found


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tracked = said(["git", "ls-files", "pyrl"], ROOT).split()
    assert set(tracked) <= set(names)
    others = {name for name in names if name not in tracked and not name.startswith("pyrl-")}
    assert all(name.endswith(".so") and name.startswith("pyrl/") for name in others), others


def test_it_works_in_another_environment(wheel: Path, tmp_path: Path) -> None:
    """One that has the packages of the lock, but neither this checkout nor its editable install."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib"))
    own = Path(said([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip())
    (own / "lock.pth").write_text(f"{packages}\n")  # the folder alone: .pth files in it are not read
    said([sys.executable, "-m", "pip", "--python", str(python), "install", "-qq", "--no-deps", str(wheel)], tmp_path)
    version, slope = said([str(python), "-c", USE], tmp_path).split()
    assert version and float(slope) < 0
    assert "train" in said([str(python.with_name("pyrl")), "--help"], tmp_path)
