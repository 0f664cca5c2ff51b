"""A grader process: `python -m pyrl.reward.worker LOADER VARIANT PARENT_PID`, spoken to over stdin and stdout.

Lines of JSON. First this process says `["ready"]`, `["unknown_task", text]`, `["unavailable", text]` or
`["failed", text]`. Then each request line is a batch `[[response, ground_truth], ...]`, answered by one line
`[outcome, reason, extracted]` an item, in order and at once, so that the parent always knows which item is being
graded. End of input ends the process.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import resource
import signal
import sys
import traceback
from typing import BinaryIO

from pyrl.reward.tasks import CRASH, Grader, GraderUnavailableError, RawVerdict, UnknownTaskError, load_grader

MEMORY_LIMIT = 8 << 30
"""Bytes of address space; a grader that wants more gets a MemoryError, not the machine's swap."""
MAX_TEXT = 1000
"""Characters of a reason or an extracted answer that are sent back."""

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Serve until the end of input. Exit code 2: no such task; 1: the grader could not be loaded."""
    loader, variant, parent_pid = arguments
    _die_with_parent(int(parent_pid))
    requests, replies = _claim_pipes()
    logging.disable(logging.CRITICAL)  # math-verify warns that its own time limit is off; the pool keeps the limit
    try:
        grader = load_grader(loader, variant)
    except UnknownTaskError as error:
        _send(replies, ["unknown_task", str(error)])
        return 2
    except GraderUnavailableError as error:
        _send(replies, ["unavailable", str(error)])
        return 2
    except Exception:
        _send(replies, ["failed", traceback.format_exc()[-MAX_TEXT:]])
        return 1
    _limit_resources()
    gc.collect()
    gc.freeze()
    _send(replies, ["ready"])
    for line in requests:
        for response, ground_truth in json.loads(line):
            outcome, reason, extracted = _grade(grader, response, ground_truth)
            _send(replies, [outcome, reason[:MAX_TEXT], None if extracted is None else extracted[:MAX_TEXT]])
    return 0


def _grade(grader: Grader, response: str, ground_truth: str) -> RawVerdict:
    try:
        return grader(response, ground_truth)
    except BaseException as error:  # SystemExit too: whatever a grader raises is its verdict, not the worker's end
        return "unjudged", f"{CRASH}: {type(error).__name__}: {error}", None


def _send(replies: BinaryIO, message: list) -> None:
    replies.write(json.dumps(message).encode() + b"\n")


def _die_with_parent(parent_pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it died before the call
        os._exit(1)


def _claim_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The two pipes under new descriptors; what a grader reads or prints goes nowhere near them."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return requests, replies


def _limit_resources() -> None:
    os.dup2(1, 2)  # until here errors were the user's to see
    for kind, limit in ((resource.RLIMIT_AS, MEMORY_LIMIT), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        hard = resource.getrlimit(kind)[1]  # stays: a sandbox's own limits may lie between
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
