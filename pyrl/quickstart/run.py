"""`pyrl quickstart`: random weights -> supervised phase -> GRPO and Clip-Cov from the same start -> one report."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pyrl.analysis.records import load_runs
from pyrl.analysis.report import compare, write_report
from pyrl.config import ConfigError, RunConfig, load_config, load_tree
from pyrl.data.tokenizer import load_tokenizer
from pyrl.evaluation.held_out import HEADINGS, POLICIES_NOT_METHODS, compare_held_out, pass_at_k_curve
from pyrl.jobs.job import Job, ServerStart
from pyrl.jobs.workers import check_servers, start_workers
from pyrl.learner.learner import Learner
from pyrl.learner.parallel import destroy_parallel, init_parallel
from pyrl.quickstart.model import write_model
from pyrl.quickstart.summary import sentence
from pyrl.quickstart.task import STANDARD, RingWalk, TaskFiles, write_task
from pyrl.run_folder import LOCK, locked
from pyrl.stages.supervised import fine_tune, load_demonstrations
from pyrl.telemetry.progress import StepProgress

TRAIN_PROMPTS, VALIDATION_PROMPTS = 4000, 200
DEMONSTRATED_PROMPTS, DEMONSTRATIONS = 4000, 102_400
SUPERVISED_STEPS, SUPERVISED_BATCH = 2400, 128
SUPERVISED_OPTIMIZER = {"lr": 2e-3, "betas": (0.9, 0.98), "weight_decay": 0.1}
SUPERVISED_LOSS = 1.40
"""Nats a token, at which the supervised phase ends, after some 500 to 1,100 steps."""
MARKER = ".quickstart"
log = logging.getLogger("pyrl")

METHODS = {
    "grpo": "loss={name: ppo_clip}",
    "clip_cov": "loss={name: clip_cov, clip_cov_ratio: 0.03, surrogate: {name: ppo_clip}}",
    "kl_cov": "loss={name: kl_cov, kl_cov_ratio: 0.1, kl_cov_coef: 1.0}",
}
"""The loss of each method, as on a command line."""
DEFAULT_METHODS = ("grpo", "clip_cov")


def run_quickstart(
    folder: Path,
    settings: Path,
    overrides: list[str],
    methods: Sequence[str] = DEFAULT_METHODS,
    *,
    workers: int = 1,
) -> None:
    """Train a policy by each method, write `report.html` and `report.png` into `folder`, print a table. Starts anew
    each time. `workers`: policies trained at a time.

    Raises ConfigError for bad settings, for a folder that is in use, and for one that holds something else.
    """
    configs = method_configs(settings, overrides, folder, methods)
    check_servers(next(iter(configs.values())), min(workers, len(configs)))
    check_clearable(folder)
    with locked(folder, option="--folder"):
        clear(folder)
        train_and_compare(configs, folder, workers)


def train_and_compare(configs: dict[str, RunConfig], folder: Path, workers: int) -> None:
    """Everything that `run_quickstart` does in its folder."""
    console = Console()
    started = time.perf_counter()
    base, *_ = configs.values()
    files = write_files(folder / "data", seed=base.seed)
    write_model(folder / "random", seed=base.seed)
    servers = ServerStart(base, folder / "random", folder)
    with start_workers(servers, min(workers, len(configs))) as started_workers:  # load during the supervised phase
        supervised_phase(base, folder / "random", files, folder / "supervised")
        started_workers.run([Job(name, config, folder / name) for name, config in configs.items()], lambda: False)
    runs = {name: folder / name for name in configs}
    held_out = [pair.cells() for pair in compare_held_out(runs)]
    found = sentence(runs)
    html, png = write_report(
        runs,
        folder,
        title="pyrl quickstart: walks on a ring with hidden gates",
        sentence=found,
        held_out=held_out,
        pass_at_k={name: pass_at_k_curve(run) for name, run in runs.items()},
    )
    console.print(result_table(runs))
    console.print(held_out_table(held_out))
    if found:
        console.print(found, highlight=False)
    console.print(f"report: {html}\npicture: {png}\n{time.perf_counter() - started:.0f} s in all")


def write_files(folder: Path, *, seed: int, task: RingWalk = STANDARD) -> TaskFiles:
    """The task in the quickstart's size. Raises ValueError for one with too few questions."""
    return write_task(
        folder,
        seed=seed,
        train=TRAIN_PROMPTS,
        validation=VALIDATION_PROMPTS,
        demonstrated=DEMONSTRATED_PROMPTS,
        demonstrations=DEMONSTRATIONS,
        task=task,
    )


def check_clearable(folder: Path) -> None:
    """ConfigError for a folder that holds anything but an earlier quickstart."""
    if folder.exists() and {entry.name for entry in folder.iterdir()} - {LOCK} and not (folder / MARKER).exists():
        raise ConfigError(f"--folder {folder} holds files that no quickstart wrote: give a new or empty folder")


def clear(folder: Path) -> None:
    """Empty the folder, which this process has locked, of an earlier quickstart."""
    (folder / MARKER).write_text("Written by `pyrl quickstart`, which empties this folder when it is run again.\n")
    for entry in folder.iterdir():
        if entry.name in (LOCK, MARKER):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def method_configs(
    settings: Path, overrides: list[str], folder: Path, methods: Sequence[str] = DEFAULT_METHODS
) -> dict[str, RunConfig]:
    """The resolved config of each method; they differ in what `METHODS` says alone. Raises ConfigError."""
    for name in methods:
        if name not in METHODS:
            raise ConfigError(f"--methods {name}: known are {', '.join(METHODS)}")
    given = load_tree(settings, overrides)
    for key in ("loss", "model.path", "data.path", "data.validation_path"):
        section, _, name = key.partition(".")
        if section in given and (not name or name in given[section]):
            raise ConfigError(f"{key}: `pyrl quickstart` sets it itself; use `pyrl train` to choose it")
    paths = {
        "model.path": folder / "supervised",
        "data.path": folder / "data" / "train.jsonl",
        "data.validation_path": folder / "data" / "validation.jsonl",
    }
    made = [f"{key}={json.dumps(str(path))}" for key, path in paths.items()]
    return {name: load_config(settings, [METHODS[name], *overrides, *made]) for name in methods}


def supervised_phase(
    config: RunConfig,
    start: Path,
    files: TaskFiles,
    destination: Path,
    *,
    steps: int = SUPERVISED_STEPS,
    target_loss: float | None = SUPERVISED_LOSS,
) -> None:
    """Fine-tune the random model on the demonstrations in the same learner; write it as a Hugging Face folder.

    Ends when the loss is `target_loss`, nats a token, or after `steps` updates; None: after as many.
    """
    model = config.model.model_copy(update={"path": start})
    optimizer = config.optimizer.model_copy(update=SUPERVISED_OPTIMIZER)
    config = config.model_copy(update={"model": model, "optimizer": optimizer})
    parallel = init_parallel(config.parallel)
    learner = Learner(config, parallel)
    demonstrations = load_demonstrations(
        files.demonstrations, load_tokenizer(start), template=config.data.template
    )
    with StepProgress("supervised", steps, shown=("loss",)) as progress:
        loss = fine_tune(
            learner,
            parallel,
            demonstrations,
            steps=steps,
            target_loss=target_loss,
            batch_size=SUPERVISED_BATCH,
            max_tokens=config.optimizer.max_tokens_per_micro_batch,
            seed=config.seed,
            on_step=lambda step, loss: progress.update(step, {"loss": loss}),
        )
    if target_loss is not None and loss > 1.1 * target_loss:  # of one batch; the target is of a mean
        log.warning("the supervised phase ended at a loss of %.2f, want %g: its policy knows less", loss, target_loss)
    learner.export_hf(destination)
    destroy_parallel()


def held_out_table(rows: list[tuple[str, ...]]) -> Table:
    table = Table(
        title="held-out questions in pairs: 95% interval by question, p of a sign-flip permutation test",
        caption=POLICIES_NOT_METHODS,
    )
    for heading in HEADINGS:
        table.add_column(heading)
    for row in rows:
        table.add_row(*row)
    return table


def result_table(runs: dict[str, Path]) -> Table:
    """Start and end of every compared metric of each run, from its own records."""
    table = Table(title="start -> end (means of the first 5 and the last 20 steps; held-out: first and last)")
    table.add_column("")
    for name in runs:
        table.add_column(name, justify="right")
    for row in compare(load_runs(runs)):
        cells = [
            "-" if start is None or end is None else f"{start:.4g} -> {end:.4g}"
            for start, end in zip(row.start, row.end, strict=True)
        ]
        table.add_row(f"{row.label} ({row.unit})" if row.unit else row.label, *cells)
    return table
