"""Measures every op on this machine and writes the table: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, ops, peers, table
from benchmarks.measure import measure
from pyrl.ops import build_info

_RESULTS = Path(__file__).resolve().parent / "results"
_TRIALS = Path(__file__).resolve().parents[1] / "build" / "bench"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--ops", nargs="+", choices=sorted(ops.ALL), default=sorted(ops.ALL))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the shapes' sizes, for a trial run")
    parser.add_argument("--out", type=Path, help="folder of the results; build/bench unless every op is at full size")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    torch.manual_seed(0)
    rows = []
    # One stream for everything: a backward pass runs on the stream of its forward pass, and a graph is captured on it.
    with torch.cuda.stream(torch.cuda.Stream()) if device.type == "cuda" else nullcontext():
        for name in options.ops:
            for case in ops.ALL[name](device, options.scale):
                rows += measure(case, device)
                print(f"{case.op}, {case.direction}, {case.dtype}, {case.shape}: done", file=sys.stderr)
    context = _context(device, arguments)
    for file in table.write(rows, context, options.out or _folder(options.ops, options.scale)):
        print(file)
    print(table.markdown(rows, context))


def _folder(measured: Sequence[str], scale: float) -> Path:
    """Files are named by device and date: a trial must not take the place of the day's results."""
    return _RESULTS if set(measured) == set(ops.ALL) and scale == 1 else _TRIALS


def _context(device: torch.device, arguments: Sequence[str] | None) -> dict[str, Any]:
    installed = {peer.name: peers.load(peer) for peer in peers.ALL}
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else machine.cpu(),
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m benchmarks", *(sys.argv[1:] if arguments is None else arguments)]),
        "threads": torch.get_num_threads(),
        "load of the machine": f"{os.getloadavg()[0]:.1f} at the end of the run",
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
        + f"pyrl {build_info()['version']} built by {build_info()['compiler']}",
        "GPU": "measured" if device.type == "cuda" else "no CUDA device: not measured",
        "peers": "; ".join(f"{n} {about}" if f else f"{n}: {about}" for n, (f, about) in installed.items()),
    }


if __name__ == "__main__":
    main()
