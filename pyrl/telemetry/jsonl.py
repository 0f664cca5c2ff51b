"""A file of one JSON object a line that survives crashes: whole lines only, cut back by step on resume."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


class RecordFileError(ValueError):
    """A record file is missing or damaged; the text names the file, the line and the remedy."""


class JsonlFile:
    """Append-only lines with a non-decreasing integer `step`, for one writing process.

    Opening repairs a last line that a crash left unfinished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._repair_last_line()
        self.last_step: int | None = None
        for _, row in _offsets(path):
            self.last_step = row["step"]

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append all rows or none; OSError when the disk refuses them."""
        rows = list(rows)
        if not rows:
            return
        data = "".join(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows).encode()
        size = os.fstat(self._fd).st_size
        try:
            written = 0
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError as error:
            os.ftruncate(self._fd, size)
            raise OSError(error.errno, f"{error.strerror}: {len(data)} bytes did not fit, nothing was appended",
                          str(self.path)) from error  # fmt: skip
        self.last_step = rows[-1]["step"]

    def lines_after(self, step: int) -> bytes:
        """The lines whose step is greater than `step`, as they are in the file."""
        start, _, _ = self._cut(step)
        return self.path.read_bytes()[start:]

    def truncate_after(self, step: int) -> int:
        """Drop the lines whose step is greater than `step`; returns how many. One system call: all or nothing."""
        start, self.last_step, dropped = self._cut(step)
        if dropped:
            os.ftruncate(self._fd, start)
        return dropped

    def _cut(self, step: int) -> tuple[int, int | None, int]:
        """(byte offset after the last line of at most `step`, its step, number of lines after it)"""
        kept, after = None, []
        for offset, row in _offsets(self.path):
            if row["step"] > step:
                after.append(offset)
            else:
                kept = row["step"]
        return (after[0] if after else os.fstat(self._fd).st_size), kept, len(after)

    def sync(self) -> None:
        """Force what was appended to the disk."""
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def _repair_last_line(self) -> None:
        data = self.path.read_bytes()
        tail = data[data.rfind(b"\n") + 1 :]
        if not tail:
            return
        try:
            whole = isinstance(json.loads(tail), dict)
        except ValueError:
            whole = False
        if whole:
            os.write(self._fd, b"\n")
        else:
            os.ftruncate(self._fd, len(data) - len(tail))


def last_recorded_step(path: Path) -> int | None:
    """Step of the last finished line, None where there is no file or no line; RecordFileError as `read_jsonl`."""
    last = None
    for row in read_jsonl(path) if path.is_file() else ():
        last = row["step"]
    return last


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a record file in order. An unfinished last line, as of a live run, is left out.

    Raises RecordFileError: file missing, a line that is not a JSON object with an integer `step`, a step that
    goes back.
    """
    if not path.is_file():
        raise RecordFileError(f"{path} does not exist: is {path.parent} a run folder?")
    for _, row in _offsets(path):
        yield row


def _offsets(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(byte offset of the line, row) of every finished line."""
    offset, last_step = 0, None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            row = _parse(path, number, line)
            if last_step is not None and row["step"] < last_step:
                raise RecordFileError(f"{path}:{number}: step {row['step']} follows step {last_step}: steps must not "
                                      "go back; two runs may have written to this folder")  # fmt: skip
            yield offset, row
            offset, last_step = offset + len(line), row["step"]


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise RecordFileError(f"{path}:{number}: not JSON ({error}); restore the file or delete that line") from error
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise RecordFileError(f"{path}:{number}: not an object with an integer `step`: {line[:80]!r}")
    return row
