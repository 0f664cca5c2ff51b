"""A small real run as a user starts it, `pyrl train` in processes of its own, to be killed, resumed and compared."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from pyrl.config import RunConfig, parse_config
from pyrl.quickstart.model import write_model
from pyrl.quickstart.run import supervised_phase
from pyrl.quickstart.task import RingWalk, write_task
from pyrl.rollout.server import ServerPool
from pyrl.telemetry.names import reproducible_names
from tests import program
from tests.program import Program

STEPS, SUPERVISED_STEPS = 5, 120
WALK = RingWalk(places=6, moves=2, walls=1, gates=0, slip=0.1)
"""Small enough that some answers are right after so few supervised steps."""
DEADLINE_SECONDS = 500.0
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def _as_from_a_terminal() -> None:
    """A test run in the background of a shell ignores SIGINT, and its children would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Job:
    """A run on servers that already run."""

    folder: Path
    config: RunConfig
    urls: tuple[str, ...]
    ranks: int = 1
    """More than 1: under torchrun, data-parallel unless an override says otherwise."""

    def arguments(self, run_folder: Path, *overrides: str) -> list[str]:
        """Of `pyrl`."""
        path = self.folder / f"job-{self.ranks}.yaml"
        path.write_text(yaml.safe_dump(self.config.model_dump(mode="json")))
        settings = [f"rollout.urls=[{','.join(self.urls)}]", *overrides, "--run-folder", str(run_folder)]
        return ["train", str(path), *settings]

    def start(self, run_folder: Path, *overrides: str, imported: bool = True) -> Process:
        """Output is appended to `run_folder/train.log`. Not `imported`: by an interpreter that imports everything
        itself, as the ranks under torchrun do in any case."""
        run_folder.mkdir(parents=True, exist_ok=True)
        log, arguments = run_folder / "train.log", self.arguments(run_folder, *overrides)
        log.touch()
        said = log.stat().st_size
        start = program.start if imported and self.ranks == 1 else self._start_interpreter
        return Process(start(arguments, log), log, said)

    def _start_interpreter(self, arguments: list[str], log: Path) -> subprocess.Popen:
        launcher = [*TORCHRUN, str(self.ranks)] if self.ranks > 1 else []
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, *launcher, "-m", "pyrl", *arguments],
                stdout=output,
                stderr=output,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
                preexec_fn=_as_from_a_terminal,
            )

    def finish(self, run_folder: Path, *overrides: str, imported: bool = True) -> None:
        """Run, or resume, to the end. Raises RuntimeError with the end of the log."""
        process = self.start(run_folder, *overrides, imported=imported)
        try:
            code = process.launcher.wait(DEADLINE_SECONDS)
        finally:
            process.kill()
        if code:
            raise RuntimeError(f"exit code {code}:\n{process.log()[-3000:]}")

    def finish_ranks(self, run_folder: Path, *overrides: str) -> None:
        """The same by ranks that no launcher watches; for what does not look at the launcher, and so quicker."""
        run_folder.mkdir(parents=True, exist_ok=True)
        log = run_folder / "train.log"
        ranks = program.start_ranks(self.ranks, self.arguments(run_folder, *overrides), log)
        try:
            codes = [rank.wait(DEADLINE_SECONDS) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        if any(codes):
            raise RuntimeError(f"exit codes {codes}:\n{log.read_text()[-3000:]}")


@dataclass(frozen=True)
class Process:
    """A started job."""

    launcher: subprocess.Popen | Program
    log_path: Path
    log_start: int

    def log(self) -> str:
        """What this process, not an earlier one of the same run, has said."""
        return self.log_path.read_bytes()[self.log_start :].decode(errors="replace")

    def wait_until(self, condition: Callable[[Process], bool]) -> bool:
        """False when the job ended before `condition` held. Raises RuntimeError after the deadline."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition(self):
            if self.launcher.poll() is not None:
                return False
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the moment never came:\n{self.log()[-3000:]}")
            time.sleep(0.001)
        return True

    def ranks(self) -> dict[str, psutil.Process]:
        """The processes that torchrun started, by rank."""
        children = psutil.Process(self.launcher.pid).children()
        return {p.environ()["RANK"]: p for p in children if "RANK" in p.environ()}

    def kill(self) -> bool:
        """SIGKILL to the job's processes at once, as when the machine dies; False when it had ended before."""
        if self.launcher.poll() is not None:
            return False
        below = psutil.Process(self.launcher.pid).children(recursive=True)
        self.launcher.kill()
        for process in below:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        killed = self.launcher.wait() == -signal.SIGKILL
        psutil.wait_procs(below, timeout=20)
        return killed


def write_even_model(folder: Path) -> Path:
    """The quickstart's model with 2 attention heads in place of 3, so that it can be split among tensor-parallel ranks;
    its 1 kv head is then held twice."""
    write_model(folder, seed=0, task=WALK)
    config = LlamaConfig.from_pretrained(folder, num_attention_heads=2, hidden_size=64)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@contextmanager
def served_job(folder: Path, *, ranks: int = 1, **sections: Any) -> Iterator[Job]:
    """Task, settings (`sections` change them), a model that gets some answers right, and a server for each rank."""
    files = write_task(
        folder / "data", seed=0, train=60, validation=20, demonstrated=30, demonstrations=8000, task=WALK
    )
    start = write_even_model(folder / "random")
    tree: dict[str, Any] = {
        "seed": 0,
        "steps": STEPS,
        "deterministic": True,
        "model": {"path": str(folder / "model")},
        "data": {"path": str(files.train), "template": "plain", "max_prompt_tokens": 24},
        "reward": {"task": "ring_walk"},
        "rollout": {"prompts_per_step": 16, "samples_per_prompt": 4, "max_response_tokens": 5, "threads": 1,
                    "servers_per_node": ranks},
        "algorithm": {"updates_per_rollout": 2},
        "loss": {"name": "kl_cov", "kl_cov_ratio": 0.05},
        "optimizer": {"lr": 2e-4},
        "checkpoint": {"every": 1},
    }  # fmt: skip
    tree |= {name: tree.get(name, {}) | section for name, section in sections.items()}
    config = parse_config(tree, origin="job")
    with ServerPool.start(config, start, folder) as servers:  # loads while the model is trained
        supervised_phase(config, start, files, folder / "model", steps=SUPERVISED_STEPS, target_loss=None)
        yield Job(folder, config, servers.wait_ready(), ranks)


def foreign_lines(terminal: str) -> list[str]:
    """What stands between our own lines: the log's, and those of the progress."""
    ours = re.compile(r"\d\d:\d\d:\d\d pyrl(\.\w+)*: |training  step \d+/\d+  ")
    return [line for line in terminal.splitlines() if not ours.match(line)]


def rows(run_folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_folder / name).read_text().splitlines()]


def records(run_folder: Path) -> list[dict[str, Any]]:
    """Every recorded field that is not a time or an amount of memory."""
    return [{name: row[name] for name in reproducible_names() if name in row} for row in rows(run_folder)]


def differences(one: Path, other: Path) -> list[str]:
    """What is not bit-equal between two finished runs: records, samples, weights."""
    first, second = records(one), records(other)
    found = [] if len(first) == len(second) else [f"{len(first)} / {len(second)} records"]
    for a, b in zip(first, second, strict=False):
        names = sorted(a.keys() | b.keys())
        found += [f"step {a['step']} {k}: {a.get(k)} / {b.get(k)}" for k in names if a.get(k) != b.get(k)]
    if (one / "samples.jsonl").read_bytes() != (other / "samples.jsonl").read_bytes():
        found.append("samples.jsonl")
    return found if same_weights(one / "final", other / "final") else [*found, "weights"]


def same_weights(one: Path, other: Path) -> bool:
    """Whether two model folders hold the same bits under the same names."""
    weights, others = (load_file(folder / "model.safetensors") for folder in (one, other))
    return weights.keys() == others.keys() and all(weights[name].equal(others[name]) for name in weights)
