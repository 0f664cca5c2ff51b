"""A case -> the rows of its table."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks.case import Case, Contender, Row
from benchmarks.timing import eager_seconds, graph_seconds, interleaved_seconds, peak_memory


def measure(case: Case, device: torch.device) -> list[Row]:
    """One row per contender, ours first as the case has it, then one per missing peer."""
    rows = [Row(case.op, case.direction, case.shape, case.dtype, c.name, note=c.note) for c in case.contenders]
    if device.type == "cuda":
        _measure_cuda(case, rows)
    else:
        _measure_cpu(case, rows)
    eager = [row.seconds for row, c in zip(rows, case.contenders, strict=True) if c.is_eager and row.seconds]
    for row in rows:
        if row.seconds and eager:
            row.ratio = min(eager) / row.seconds
    rows += [Row(case.op, case.direction, case.shape, case.dtype, name, note=why) for name, why in case.missing.items()]
    return rows


def _measure_cpu(case: Case, rows: list[Row]) -> None:
    good = [i for i, c in enumerate(case.contenders) if _take_memory_and_error(c, rows[i], torch.device("cpu"))]
    rates: list[float] = []
    builds = [case.contenders[i].build for i in good]
    *seconds, _ = interleaved_seconds([*builds, lambda: lambda: rates.append(case.ceiling.rate())])
    # The fastest against the fastest: medians of different code suffer differently from what else the machine does.
    least = _least_seconds(case, rows, max(rates))
    for i, times in zip(good, seconds, strict=True):
        rows[i].seconds, rows[i].fastest_seconds = statistics.median(times), min(times)
        rows[i].ceiling_share = least / min(times)


def _measure_cuda(case: Case, rows: list[Row]) -> None:
    """One contender at a time: two of them would not fit beside each other."""
    least = _least_seconds(case, rows, case.ceiling.rate())
    for contender, row in zip(case.contenders, rows, strict=True):
        if not _take_memory_and_error(contender, row, torch.device("cuda")):
            continue
        row.eager_seconds = _attempt(row, lambda c=contender: eager_seconds(c.build))
        row.seconds = _attempt(row, lambda c=contender: graph_seconds(c.build))
        if row.seconds is not None:
            row.ceiling_share = least / row.seconds
        torch.cuda.empty_cache()


def _least_seconds(case: Case, rows: list[Row], rate: float) -> float:
    for row in rows:
        row.ceiling = f"{case.ceiling.name}, {rate:.3g} {case.ceiling.unit}/s"
    return case.ceiling.work / rate


def _take_memory_and_error(contender: Contender, row: Row, device: torch.device) -> bool:
    """False where the contender does not run."""
    whole = contender.whole or (lambda: contender.build()())
    _attempt(row, whole)  # compiles, and fills caches that are not memory of the call
    if row.note != contender.note:
        return False
    row.memory_bytes, result = peak_memory(whole, device)
    if contender.error is not None:
        row.error = contender.error(result)
    return True


def _attempt(row: Row, action: Any) -> Any:
    """What the action returns; None where it fails, and then the row says how: a peer that cannot run this shape or be
    captured is a result, not a reason to stop."""
    try:
        return action()
    except Exception as error:  # whatever a peer raises
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
        row.note = "; ".join(filter(None, [row.note, f"{type(error).__name__}: {first_line}"]))
        return None
