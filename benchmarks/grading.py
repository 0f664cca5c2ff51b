r"""Gradings a second of the pool for `reward.task: math`, and of math-verify alone: `python -m benchmarks.grading`.

Two kinds of answers: equal as text, as most right answers are, and such that text never decides, half of them right in
another form (`\frac{3}{8}` for `0.375`, `2\sqrt{2}` for `\sqrt{8}`) and half wrong. Every item is another one, over all
repeats, so that no cache holds its verdict.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import cpu, file_stem
from pyrl.reward import RewardPool

TIMEOUT_SECONDS = 10.0
COUNTS = (1000, 500)
"""Items of a repeat: equal as text, in another form."""
WARM_UP = 60
"""Items before the first repeat, which fill what is made once."""
RESULTS = Path(__file__).resolve().parent / "results"
TRIALS = Path(__file__).resolve().parents[1] / "build" / "bench"
_SQUARE_FREE = (2, 3, 5, 6, 7, 10, 11, 13)


@dataclass(frozen=True)
class Item:
    response: str
    truth: str
    is_right: bool


@dataclass(frozen=True)
class Pace:
    gradings_per_second: float
    cpu_milliseconds: float
    """Of one grading, all processes together: what does not depend on who else wants the cores."""


@dataclass
class Rates:
    """Of one kind of answers, a pace a repeat; both contenders had the same items."""

    answers: str
    items: int
    pyrl: list[Pace]
    math_verify: list[Pace]
    math_verify_agrees: float
    """Share of the items on which math-verify alone is right; pyrl must be right on all."""


def equal_items(start: int, count: int) -> list[Item]:
    """Answers that are their ground truth letter by letter, of several shapes."""
    shapes: list[Callable[[int], str]] = [
        str,
        lambda i: rf"\frac{{{2 * i + 1}}}{{{i + 2}}}",
        lambda i: rf"{i}\sqrt{{{_SQUARE_FREE[i % 8]}}}",
        lambda i: f"({i}, {i + 1})",
        lambda i: f"x^2 + {i}x - 1",
    ]
    texts = [shapes[i % len(shapes)](i) for i in range(start, start + count)]
    return [Item(_response(text), text, True) for text in texts]


def other_form_items(start: int, count: int) -> list[Item]:
    """Answers that text does not decide: every other one is right, the others miss it by a little."""
    forms = (_decimal, _unreduced, _radical, _multiple_of_pi, _terms, _pair)
    items = []
    for index in range(start, start + count):
        is_right = index % 2 == 0
        answer, truth = forms[index // 2 % len(forms)](index, 0 if is_right else 1)
        items.append(Item(_response(answer), truth, is_right))
    return items


def _response(answer: str) -> str:
    return rf"Both sides agree, so the answer is \boxed{{{answer}}}."


def _decimal(i: int, miss: int) -> tuple[str, str]:
    return rf"\frac{{{2 * i + 1 + 2 * miss}}}{{8}}", f"{(2 * i + 1) / 8:.3f}"


def _unreduced(i: int, miss: int) -> tuple[str, str]:
    return rf"\frac{{{3 * i + 3 + miss}}}{{{3 * i + 6}}}", rf"\frac{{{i + 1}}}{{{i + 2}}}"


def _radical(i: int, miss: int) -> tuple[str, str]:
    root = _SQUARE_FREE[i // 12 % 8]
    return rf"{i + 2 + miss}\sqrt{{{root}}}", rf"\sqrt{{{(i + 2) ** 2 * root}}}"


def _multiple_of_pi(i: int, miss: int) -> tuple[str, str]:
    return rf"\frac{{{i + miss}}}{{4}}\pi", rf"\frac{{{i}\pi}}{{4}}"


def _terms(i: int, miss: int) -> tuple[str, str]:
    return f"{i + miss} + {i + 3}x", f"{i + 3}x + {i}"


def _pair(i: int, miss: int) -> tuple[str, str]:
    return rf"\left(\frac{{{2 * i + 1}}}{{2}}, {i + miss}\right)", f"({i}.5, {i})"


def measure(answers: str, make: Callable[[int, int], list[Item]], pool: RewardPool, count: int, repeats: int) -> Rates:
    """Both contenders in turn, so that what else the machine does falls on both."""
    rates = Rates(answers, count, [], [], 0.0)
    warm_up = make(0, WARM_UP)
    _by_pool(pool, warm_up)
    _by_math_verify(warm_up)
    agreed = 0
    for repeat in range(repeats):
        items = make(WARM_UP + repeat * count, count)
        outcomes, ours = _by_pool(pool, items)
        _check(items, outcomes)
        same, alone = _by_math_verify(items)
        rates.pyrl.append(ours)
        rates.math_verify.append(alone)
        agreed += sum(got == item.is_right for got, item in zip(same, items, strict=True))
    rates.math_verify_agrees = agreed / (repeats * count)
    return rates


def _by_pool(pool: RewardPool, items: Sequence[Item]) -> tuple[list[str], Pace]:
    pairs = [(item.response, item.truth) for item in items]
    processes = [psutil.Process(pid) for pid in pool.worker_pids]

    def cpu_seconds() -> float:
        return time.process_time() + sum(sum(process.cpu_times()[:2]) for process in processes)

    verdicts, pace = _timed(lambda: pool.grade(pairs), cpu_seconds, len(items))
    return [verdict.outcome for verdict in verdicts], pace


def _by_math_verify(items: Sequence[Item]) -> tuple[list[bool], Pace]:
    """As its README calls it: in one process, with its alarm signal for a time limit."""
    from math_verify import parse, verify

    def grade() -> list[bool]:
        return [verify(parse(f"${item.truth}$"), parse(item.response)) for item in items]

    return _timed(grade, time.process_time, len(items))


def _timed(call: Callable[[], Any], cpu_seconds: Callable[[], float], count: int) -> tuple[Any, Pace]:
    cpu_start, start = cpu_seconds(), time.perf_counter()
    result = call()
    elapsed = time.perf_counter() - start
    return result, Pace(count / elapsed, (cpu_seconds() - cpu_start) / count * 1e3)


def _check(items: Sequence[Item], outcomes: Sequence[str]) -> None:
    """A rate of wrong verdicts would mean nothing."""
    for item, outcome in zip(items, outcomes, strict=True):
        if outcome != ("right" if item.is_right else "wrong"):
            raise SystemExit(f"{item}: the verdict is {outcome}")


def markdown(results: Sequence[Rates], context: dict[str, str]) -> str:
    lines = [f"# Grading, {context['device']}, {context['date']}", ""]
    lines += [f"- {key}: {value}" for key, value in context.items() if key not in ("device", "date", "command")]
    lines += [f"- command: `{context['command']}`", ""]
    lines += ["| answers | pyrl, gradings/s | math-verify alone, gradings/s | ratio | CPU time of one, ms | agrees |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for rates in results:
        ratio = _median(rates.pyrl) / _median(rates.math_verify)
        cpu_times = " and ".join(f"{_median(p, 'cpu_milliseconds'):.2g}" for p in (rates.pyrl, rates.math_verify))
        cells = [rates.answers, _spread(rates.pyrl), _spread(rates.math_verify), f"{ratio:.1f}", cpu_times]
        lines += [f"| {' | '.join(cells)} | {rates.math_verify_agrees:.3f} |"]
    return "\n".join(lines) + "\n"


def _median(paces: Sequence[Pace], name: str = "gradings_per_second") -> float:
    return statistics.median(getattr(pace, name) for pace in paces)


def _spread(paces: Sequence[Pace]) -> str:
    rates = [pace.gradings_per_second for pace in paces]
    return f"{_median(paces):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grading", description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the items, for a trial run")
    parser.add_argument("--out", type=Path, help="folder of the results; build/bench unless all items are graded")
    options = parser.parse_args(arguments)
    counts = [max(12, round(options.scale * count)) for count in COUNTS]
    with RewardPool("math", options.workers, TIMEOUT_SECONDS) as pool:
        results = [
            measure("equal as text", equal_items, pool, counts[0], options.repeats),
            measure("half in another form, half wrong", other_form_items, pool, counts[1], options.repeats),
        ]
    context = _context(options.workers, options.repeats, counts, arguments)
    for file in write(results, context, options.out or folder(options.scale)):
        print(file)
    print(markdown(results, context))


def folder(scale: float) -> Path:
    """Files are named by device and date: a trial must not take the place of the day's results."""
    return RESULTS if scale == 1 else TRIALS


def write(results: Sequence[Rates], context: dict[str, str], target: Path) -> tuple[Path, Path]:
    """Their names tell them from the ops' results of the same device and day."""
    target.mkdir(parents=True, exist_ok=True)
    stem = f"grading_{file_stem(context)}"
    markdown_file, json_file = target / f"{stem}.md", target / f"{stem}.json"
    markdown_file.write_text(markdown(results, context))
    json_file.write_text(json.dumps({**context, "rates": [asdict(rates) for rates in results]}, indent=1) + "\n")
    return markdown_file, json_file


def _context(workers: int, repeats: int, counts: Sequence[int], arguments: Sequence[str] | None) -> dict[str, str]:
    return {
        "device": cpu(),
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m benchmarks.grading", *(sys.argv[1:] if arguments is None else arguments)]),
        "workers": f"{workers}; math-verify alone runs in one process",
        "rates": f"median (least to most) of {repeats} repeats of {counts[0]} and {counts[1]} items, all distinct",
        "agrees": "share of the items that math-verify alone judges right; pyrl judges all of them right",
        "load of the machine": f"{os.getloadavg()[0]:.1f} at the end of the run",
        "versions": f"python {platform.python_version()}, math-verify {version('math-verify')}, "
        + f"sympy {version('sympy')}",
    }


if __name__ == "__main__":
    main()
