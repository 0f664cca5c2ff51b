"""Rows -> a markdown table and a json file, both under a name made of device and date."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.case import Row
from benchmarks.machine import file_stem

_COLUMNS = ("", "median time", "peak memory beyond inputs and outputs", "largest error against float64",
            "eager / this", "share of the ceiling", "")  # fmt: skip


def write(rows: Sequence[Row], context: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """`context` holds at least `device`, `date` and `command`."""
    folder.mkdir(parents=True, exist_ok=True)
    name = file_stem(context)
    markdown_file, json_file = folder / f"{name}.md", folder / f"{name}.json"
    markdown_file.write_text(markdown(rows, context))
    json_file.write_text(json.dumps({**context, "rows": [dataclasses.asdict(row) for row in rows]}, indent=1) + "\n")
    return markdown_file, json_file


def markdown(rows: Sequence[Row], context: dict[str, Any]) -> str:
    lines = [f"# {context['device']}, {context['date']}", ""]
    lines += [f"- {key}: {value}" for key, value in context.items() if key not in ("device", "date", "command")]
    lines += [f"- command: `{context['command']}`"]
    for (op, direction, shape, dtype), group in groupby(rows, key=lambda r: (r.op, r.direction, r.shape, r.dtype)):
        group = list(group)
        ceilings = sorted({row.ceiling for row in group if row.ceiling})
        lines += ["", f"## {op}, {direction}, {dtype}, {shape}", ""]
        lines += [f"Ceiling: {'; '.join(ceilings)}.", ""] if ceilings else []
        lines += [_line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
        lines += [_line(_cells(row)) for row in group]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cells(row: Row) -> list[str]:
    time = _or_dash(row.seconds, _seconds)
    if row.fastest_seconds is not None:
        time += f" (fastest {_seconds(row.fastest_seconds)})"
    if row.eager_seconds is not None:
        time += f" (a call from Python {_seconds(row.eager_seconds)})"
    error = "-" if row.error is None else ", ".join(f"{name} {value:.1e}" for name, value in row.error.items())
    return [
        row.contender,
        time,
        _or_dash(row.memory_bytes, _bytes),
        error,
        _or_dash(row.ratio, lambda r: f"{r:.2f}"),
        _or_dash(row.ceiling_share, lambda s: f"{s:.2f}"),
        row.note,
    ]


def _or_dash(value: Any, form: Any) -> str:
    return "-" if value is None else form(value)


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _bytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
