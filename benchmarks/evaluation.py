"""What an answer costs the client of an evaluation, and how long one takes: `python -m benchmarks.evaluation`.

The client asks a process that keeps so many requests waiting. With `--model FOLDER` (the quickstart's, made by `pyrl
quickstart`: FOLDER is `runs/quickstart/supervised`) `pyrl evaluate` is also timed from its start to its scores, with a
vLLM server of its own, on the quickstart's held-out questions.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import yaml

from benchmarks.machine import cpu, file_stem
from pyrl.evaluation.store import SAMPLES, SCORES
from pyrl.quickstart.task import write_task
from pyrl.rollout.client import GenerateRequest, RolloutClient
from pyrl.rollout.open_files import SPARE_FILES

OPEN = (500, 1000, 2000, 4000, 7680, 20_000)
ANSWERS = 4000
"""Measured with so many open, after a tenth of them."""
MOST_GROWTH = 4.0
"""Of an answer's cost, from the fewest to the most open. Noise was seen to make it 1.9; a deadline moved for each open
request made it 26."""
TRAINING_QUESTIONS, QUESTIONS, SAMPLES_EACH, GOAL_SECONDS = 4000, 120, 64, 75.0
"""Questions as in the quickstart, whose model has seen neither."""
MAX_TOKENS = 9
LOOK_SECONDS = 0.2
RESULTS = Path(__file__).resolve().parent / "results"
TRIALS = Path(__file__).resolve().parents[1] / "build" / "bench"


@dataclass(frozen=True)
class Cost:
    """Of one answer, while as many requests are open."""

    open: int
    cpu_milliseconds: float


@dataclass(frozen=True)
class Timing:
    """Of one evaluation. Seconds from its start, and of CPU time."""

    samples: int
    tokens: int
    """Generated."""
    first_answer: float
    last_answer: float
    scores: float
    client_cpu: float
    server_cpu: float
    load: tuple[float, float]
    """Of the machine, over the last minute, before and after."""


def cost_of_answers(open_requests: int, answers: int) -> Cost:
    """CPU time of the client's thread for each answer: a request sent in its place, the answer read and checked."""
    marks: list[float] = []
    total = open_requests + answers + answers // 10
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.late_server", str(open_requests), str(total)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    requests = [GenerateRequest(tuple(range(10)), 1, seed, MAX_TOKENS) for seed in range(total)]
    try:
        url = server.stdout.readline().strip()
        with RolloutClient([url], stop_token_ids=[0], open_requests=open_requests) as client:
            results = client.generate(requests, on_result=lambda *_: marks.append(time.thread_time()))
    finally:
        server.communicate()
    if failed := next((result.error for result in results if result.error), None):
        raise SystemExit(f"with {open_requests} open requests: {failed}")
    return Cost(open_requests, (marks[answers + answers // 10 - 1] - marks[answers // 10 - 1]) / answers * 1e3)


def most_open() -> int:
    """So many connections the system allows a process."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return max(OPEN) if hard == resource.RLIM_INFINITY else hard - SPARE_FILES


def settings(folder: Path, model: Path, questions: int, samples: int) -> Path:
    """The file of an evaluation on the first of the quickstart's held-out questions."""
    write_task(
        folder, seed=0, train=TRAINING_QUESTIONS, validation=questions, demonstrated=1, demonstrations=0
    )
    benchmark = {"source": "validation.jsonl", "samples": samples, "temperature": 1.0, "max_tokens": MAX_TOKENS,
                 "template": "plain", "grader": "ring_walk"}  # fmt: skip
    tree = {"model": str(model.absolute()), "data_dir": str(folder.absolute()), "benchmarks": {"ring_walk": benchmark},
            "server": {"dtype": "fp32"}}  # fmt: skip
    path = folder / "evaluation.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def time_evaluation(config: Path, target: Path, overrides: Sequence[str] = ()) -> Timing:
    """Run `pyrl evaluate` into `target`, which must not exist. SystemExit with what it said if it fails."""
    load, before, started = os.getloadavg()[0], _children_cpu(), time.monotonic()
    with (config.parent / "evaluation.log").open("w+") as said:
        command = [sys.executable, "-m", "pyrl", "evaluate", str(config), *overrides, "--folder", str(target)]
        process = subprocess.Popen(command, stdout=said, stderr=said)
        first, last, client_cpu = _watch(process, target / SAMPLES)
        seconds = time.monotonic() - started
        if process.wait():
            said.seek(0)
            raise SystemExit(said.read())
    server_cpu = _children_cpu() - before - client_cpu
    rows = [json.loads(line) for line in (target / SAMPLES).read_text().splitlines()]
    if json.loads((target / SCORES).read_text())["benchmarks"]["ring_walk"]["missing"]:
        raise SystemExit(f"{target} lacks samples")
    return Timing(len(rows), sum(row["tokens"] for row in rows), first - started, last - started, seconds,
                  client_cpu, server_cpu, (load, os.getloadavg()[0]))  # fmt: skip


def _watch(process: subprocess.Popen, samples: Path) -> tuple[float, float, float]:
    """When the first and the last sample were stored, and the process's own CPU seconds, once it has ended."""
    evaluation, sizes, cpu_seconds = psutil.Process(process.pid), {0: time.monotonic()}, 0.0
    file = None
    while process.poll() is None:
        time.sleep(LOOK_SECONDS)
        if samples.exists():
            found = samples.stat()
            file = file or found.st_ino
            if found.st_ino == file:  # graded samples are another file
                sizes.setdefault(found.st_size, time.monotonic())
        try:
            cpu_seconds = sum(evaluation.cpu_times()[:2])
        except psutil.Error:
            break
    times = list(sizes.values())
    return times[min(1, len(times) - 1)], times[-1], cpu_seconds


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def markdown(costs: Sequence[Cost], timing: Timing | None, context: dict[str, str]) -> str:
    lines = [f"# Evaluation, {context['device']}, {context['date']}", ""]
    lines += [f"- {key}: {value}" for key, value in context.items() if key not in ("device", "date", "command")]
    lines += [f"- command: `{context['command']}`", ""]
    lines += ["| requests open | CPU time of an answer in the client, ms |", "| --- | --- |"]
    lines += [f"| {cost.open:,} | {cost.cpu_milliseconds:.2f} |" for cost in costs]
    if timing is not None:
        over = timing.scores - GOAL_SECONDS
        lines += ["", "| evaluation | seconds |", "| --- | --- |"]
        lines += [f"| samples, tokens generated | {timing.samples:,}, {timing.tokens:,} |"]
        lines += [f"| start to first answer | {timing.first_answer:.1f} |"]
        lines += [f"| start to last answer | {timing.last_answer:.1f} |"]
        verdict = f"{over:.0f} above" if over > 0 else "within"
        lines += [f"| start to scores | {timing.scores:.1f} ({verdict} the goal of {GOAL_SECONDS:g}) |"]
        lines += [f"| CPU time of the client, of the server | {timing.client_cpu:.1f}, {timing.server_cpu:.1f} |"]
        lines += [f"| load of the machine, before and after | {timing.load[0]:.1f}, {timing.load[1]:.1f} |"]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    parser.add_argument("--model", type=Path, help="folder of the quickstart's model, for the evaluation")
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--samples", type=int, default=SAMPLES_EACH, help="of each question")
    parser.add_argument("--open", type=int, nargs="+", default=OPEN, help="requests, cut to what the system allows")
    parser.add_argument("--answers", type=int, default=ANSWERS)
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="overrides for `pyrl evaluate`")
    parser.add_argument("--out", type=Path, help="folder of the results; build/bench unless all is measured")
    options = parser.parse_args(arguments)
    costs = [cost_of_answers(n, options.answers) for n in sorted({min(n, most_open()) for n in options.open})]
    timing = None
    if options.model is not None:
        with tempfile.TemporaryDirectory() as temporary:
            config = settings(Path(temporary), options.model, options.questions, options.samples)
            timing = time_evaluation(config, Path(temporary) / "out", options.set)
    context = _context(options.answers, arguments)
    for file in write(costs, timing, context, options.out or folder(timing, costs)):
        print(file)
    print(markdown(costs, timing, context))
    if costs[-1].cpu_milliseconds > MOST_GROWTH * costs[0].cpu_milliseconds:
        raise SystemExit(f"an answer costs more than {MOST_GROWTH:g} times as much with {costs[-1].open} open requests")
    if timing is not None and timing.samples == QUESTIONS * SAMPLES_EACH and timing.scores > GOAL_SECONDS:
        raise SystemExit(f"the evaluation took {timing.scores:.1f} s, the goal is {GOAL_SECONDS:g} s")


def folder(timing: Timing | None, costs: Sequence[Cost]) -> Path:
    """Files are named by device and date: a trial must not take the place of the day's results."""
    whole = timing is not None and timing.samples == QUESTIONS * SAMPLES_EACH and len(costs) == len(OPEN)
    return RESULTS if whole else TRIALS


def write(costs: Sequence[Cost], timing: Timing | None, context: dict[str, str], target: Path) -> tuple[Path, Path]:
    target.mkdir(parents=True, exist_ok=True)
    stem = f"evaluation_{file_stem(context)}"
    markdown_file, json_file = target / f"{stem}.md", target / f"{stem}.json"
    markdown_file.write_text(markdown(costs, timing, context))
    tree = {**context, "costs": [asdict(cost) for cost in costs], "evaluation": timing and asdict(timing)}
    json_file.write_text(json.dumps(tree, indent=1) + "\n")
    return markdown_file, json_file


def _context(answers: int, arguments: Sequence[str] | None) -> dict[str, str]:
    return {
        "device": cpu(),
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m benchmarks.evaluation", *(sys.argv[1:] if arguments is None else arguments)]),
        "answers": f"{answers} with each number of open requests, which a new request for every answer keeps up",
        "load of the machine": f"{os.getloadavg()[0]:.1f} at the end of the run",
        "versions": f"python {platform.python_version()}, aiohttp {version('aiohttp')}",
    }


if __name__ == "__main__":
    main()
