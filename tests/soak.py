"""Kill a run at random moments, resume it, and compare with an unbroken one: `make soak`, or `python -m tests.soak`.

The run is the real one: `pyrl train` in a process of its own, on a vLLM server that outlives it. Moments: while a step
runs (generation, sync, optimizer), and while a checkpoint is being written or has just been renamed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from safetensors.torch import load_file

from pyrl.config import RunConfig, parse_config
from pyrl.quickstart.model import write_model
from pyrl.quickstart.run import supervised_phase
from pyrl.quickstart.task import write_task
from pyrl.rollout.server import ServerPool
from pyrl.telemetry.names import reproducible_names

STEPS = 5
DEADLINE_SECONDS = 300.0


@dataclass(frozen=True)
class Job:
    """A small run on a server that already runs."""

    folder: Path
    config: RunConfig
    url: str

    def command(self, run_folder: Path, *overrides: str) -> list[str]:
        path = self.folder / "soak.yaml"
        path.write_text(yaml.safe_dump(self.config.model_dump(mode="json")))
        arguments = [str(path), f"rollout.urls=[{self.url}]", *overrides, "--run-folder", str(run_folder)]
        return [sys.executable, "-m", "pyrl", "train", *arguments]

    def start(self, run_folder: Path, *overrides: str) -> subprocess.Popen:
        run_folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with (run_folder / "train.log").open("ab") as log:
            return subprocess.Popen(
                self.command(run_folder, *overrides), stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def finish(self, run_folder: Path, *overrides: str) -> None:
        """Run, or resume, to the end."""
        code = self.start(run_folder, *overrides).wait(DEADLINE_SECONDS)
        if code:
            raise RuntimeError(f"exit code {code}:\n{(run_folder / 'train.log').read_text()[-3000:]}")

    def kill_when(self, run_folder: Path, condition: Callable[[], bool], delay: float = 0.0) -> bool:
        """Start, SIGKILL `delay` seconds after `condition` holds; False when the run ended before."""
        process = self.start(run_folder)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            if process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(f"the moment never came:\n{(run_folder / 'train.log').read_text()[-3000:]}")
            time.sleep(0.001)
        time.sleep(delay)
        if process.poll() is not None:
            return False
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def prepare(folder: Path, *, seed: int = 0) -> RunConfig:
    """Model (briefly fine-tuned, so that rewards differ), task and settings of the run."""
    files = write_task(folder / "data", seed=seed, train=400, validation=50, demonstrations=4000)
    start = write_model(folder / "random", seed=seed)
    tree = {
        "seed": seed,
        "steps": STEPS,
        "deterministic": True,
        "model": {"path": str(folder / "model")},
        "data": {"path": str(files.train), "template": "plain", "max_prompt_tokens": 24},
        "reward": {"task": "countdown"},
        "rollout": {"prompts_per_step": 16, "samples_per_prompt": 4, "max_response_tokens": 10, "threads": 1},
        "algorithm": {"updates_per_rollout": 2},
        "loss": {"name": "kl_cov", "kl_cov_ratio": 0.05},
        "optimizer": {"lr": 1e-3},
        "checkpoint": {"every": 1},
    }
    config = parse_config(tree, origin="soak")
    supervised_phase(config, start, files, folder / "model", steps=40)
    return config


def records(run_folder: Path) -> list[dict[str, object]]:
    """Every recorded field that is not a time or an amount of memory."""
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in reproducible_names() if name in row} for row in rows]


def differences(one: Path, other: Path) -> list[str]:
    """What is not bit-equal between two finished runs: records, samples, weights."""
    found = []
    for a, b in zip(records(one), records(other), strict=True):
        names = sorted(a.keys() | b.keys())
        found += [f"step {a['step']} {k}: {a.get(k)} / {b.get(k)}" for k in names if a.get(k) != b.get(k)]
    if (one / "samples.jsonl").read_bytes() != (other / "samples.jsonl").read_bytes():
        found.append("samples.jsonl")
    first, second = (load_file(folder / "final" / "model.safetensors") for folder in (one, other))
    return found + [name for name in first if not first[name].equal(second[name])]


def moment(run_folder: Path, rng: random.Random) -> tuple[str, Callable[[], bool], float]:
    """A random (name, condition, further seconds) to kill at."""
    step = rng.randrange(STEPS - 1)
    checkpoints = run_folder / "checkpoints"
    if rng.random() < 0.5:
        metrics = run_folder / "metrics.jsonl"
        started = lambda: (metrics.exists() and metrics.read_bytes().count(b"\n") >= step)  # noqa: E731
        return f"in step {step + 1}", started, rng.uniform(0.0, 1.0)
    if rng.random() < 0.7:
        writing = checkpoints / f".writing_step_{step + 1:06d}"
        return f"writing checkpoint {step + 1}", writing.exists, rng.uniform(0.0, 0.1)
    renamed = checkpoints / f"step_{step + 1:06d}"
    return f"after the rename of checkpoint {step + 1}", renamed.exists, 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="pyrl-soak-"))
    config = prepare(folder)
    with ServerPool.start(config, config.model.path, folder) as servers:
        (url,) = servers.wait_ready()
        job = Job(folder, config, url)
        job.finish(folder / "unbroken")
        failures = 0
        for number in range(options.kills):
            run_folder = folder / f"killed-{number}"
            name, condition, delay = moment(run_folder, rng)
            killed = job.kill_when(run_folder, condition, delay)
            job.finish(run_folder)
            different = differences(folder / "unbroken", run_folder)
            failures += bool(different) or not killed
            print(f"{number + 1:3d} {name}: {'killed' if killed else 'ended before'}, "
                  f"{'equal' if not different else different[:5]}", flush=True)  # fmt: skip
    print(f"{options.kills - failures} passed, {failures} failed")
    if not failures:
        shutil.rmtree(folder)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
