"""What a result says of the machine that it is from, and the name of its files."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path


def cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} {os.cpu_count()} cores"


def file_stem(context: Mapping[str, str]) -> str:
    """Of device and date."""
    return re.sub(r"[^a-z0-9]+", "-", context["device"].lower()).strip("-") + "_" + context["date"]
