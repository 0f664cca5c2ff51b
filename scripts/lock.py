"""Resolve requirements/*.in into lock files (`make lock`).

pip has no resolver for another Python or platform, so uv resolves; it is given the indexes that pip itself is
configured with. The result holds no index, no path and no local version, so that it can be committed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
PLATFORM = "x86_64-manylinux_2_28"
# pip's option -> uv's
INDEX_OPTIONS = {"index-url": "--default-index", "extra-index-url": "--index", "find-links": "--find-links"}
CUDA_PACKAGE = re.compile(r"^(?!nvidia-cuda-nvdisasm=)(nvidia|cuda|triton)[-=]", re.MULTILINE)
LOCAL_VERSION = re.compile(r"^(torch==[^+\s]+)\+\S+", re.MULTILINE)

HEADERS = {
    "cpu": """\
# Made by `make lock` from cpu.in and overrides.txt: Python 3.11, Linux x86-64, no CUDA. Do not edit.
# Install with `pip install --no-deps -r requirements/cpu.lock`: the list is complete, and it leaves out on purpose what
# overrides.txt names. `torch` must come from an index that offers CPU builds.
""",
    "gpu": """\
# Made by `make lock` from gpu.in: Python 3.12, Linux x86-64, CUDA. Do not edit.
# Checked by a resolver run only: these versions agree with one another on paper; the list was not installed or run.
# flash-attn compiles against the installed torch: install the rest first, then it, `--no-build-isolation --no-deps`.
""",
}


def pip_index_arguments() -> list[str]:
    """pip's configured indexes (environment and files, the environment winning) as uv arguments."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        scope, _, name = key.rpartition(".")
        if name in INDEX_OPTIONS and (name not in settings or scope == ":env:"):
            settings[name] = value.strip("'\"").replace("\\n", " ")
    return [part for name, value in settings.items() for url in value.split() for part in (INDEX_OPTIONS[name], url)]


def resolve(uv: Path, name: str, python: str, extra: list[str]) -> str:
    """The pinned list for one .in file; raises SystemExit with uv's explanation when there is no solution."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.lock"
        command = [
            *(uv, "pip", "compile", f"requirements/{name}.in", "--quiet", "--no-header", "--output-file", output),
            *("--python-version", python, "--python-platform", PLATFORM, "--index-strategy", "unsafe-best-match"),
            *extra,
            *pip_index_arguments(),
        ]
        done = subprocess.run([str(part) for part in command], cwd=REQUIREMENTS.parent)
        if done.returncode:
            sys.exit(f"lock: no solution for requirements/{name}.in; uv says why above")
        return LOCAL_VERSION.sub(r"\1", output.read_text())


def main() -> None:
    uv = Path(sys.argv[1])
    cpu = resolve(uv, "cpu", "3.11", ["--override", "requirements/overrides.txt"])
    if found := CUDA_PACKAGE.search(cpu):
        sys.exit(
            f"lock: the resolved torch is a CUDA build (it asks for {found.group().rstrip('=-')}...); point "
            "PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS at PyTorch's CPU wheels (https://pytorch.org/get-started/locally/)"
        )
    locks = {"cpu": cpu, "gpu": resolve(uv, "gpu", "3.12", [])}
    for name, text in locks.items():
        (REQUIREMENTS / f"{name}.lock").write_text(HEADERS[name] + text)
        print(f"requirements/{name}.lock: {len(re.findall('==', text))} packages")


if __name__ == "__main__":
    main()
