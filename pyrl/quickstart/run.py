"""`pyrl quickstart`: random weights -> supervised phase -> GRPO and KL-Cov from the same start -> one report."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pyrl.analysis.records import load_runs
from pyrl.analysis.report import compare, write_report
from pyrl.config import ConfigError, KLCov, LossConfig, PPOClip, RunConfig, load_tree, parse_config
from pyrl.data.tokenizer import load_tokenizer
from pyrl.evaluation.held_out import HEADINGS, POLICIES_NOT_METHODS, compare_held_out
from pyrl.learner.learner import Learner
from pyrl.learner.parallel import destroy_parallel, init_parallel
from pyrl.quickstart.model import write_model
from pyrl.quickstart.task import TaskFiles, write_task
from pyrl.rollout.server import ServerPool
from pyrl.run_folder import LOCK, locked
from pyrl.stages.supervised import fine_tune, load_demonstrations
from pyrl.telemetry.progress import StepProgress
from pyrl.trainer import train

TRAIN_PROMPTS, VALIDATION_PROMPTS, DEMONSTRATIONS = 360, 120, 102_400
SUPERVISED_STEPS, SUPERVISED_BATCH, SUPERVISED_LR = 400, 256, 1e-3
SUPERVISED_LOSS = 1.09
"""Nats a token, at which the supervised phase ends: about one in seven first answers is right then. Seeds need 200 to
300 updates for it; after a fixed number they would start from rewards that differ fourfold."""
MARKER = ".quickstart"

METHODS: dict[str, LossConfig] = {
    "grpo": PPOClip(),
    "kl_cov": KLCov(name="kl_cov", kl_cov_ratio=0.45, kl_cov_coef=1.6),
}
"""45% of the tokens, where the paper takes 0.02% to 0.2%: a mini-batch here holds 250 tokens, not hundreds of
thousands, and every response chooses at three of its four tokens."""


def run_quickstart(folder: Path, settings: Path, overrides: list[str]) -> None:
    """Train both policies, write `report.html` and `report.png` into `folder`, print a table. Starts anew each time.

    Raises ConfigError for bad settings, for a folder that is in use, and for one that holds something else.
    """
    configs = method_configs(settings, overrides, folder)
    check_clearable(folder)
    with locked(folder, option="--folder"):
        clear(folder)
        train_and_compare(configs, folder)


def train_and_compare(configs: dict[str, RunConfig], folder: Path) -> None:
    """Everything that `run_quickstart` does in its folder."""
    console = Console()
    started = time.perf_counter()
    base = configs["grpo"]
    files = write_task(
        folder / "data",
        seed=base.seed,
        train=TRAIN_PROMPTS,
        validation=VALIDATION_PROMPTS,
        demonstrations=DEMONSTRATIONS,
    )
    write_model(folder / "random", seed=base.seed)
    with ServerPool.start(base, folder / "random", folder) as servers:  # loads while the supervised phase runs
        supervised_phase(base, folder / "random", files, folder / "supervised")
        for name, config in configs.items():
            train(config, folder / name, servers=servers, title=name)
            destroy_parallel()
    runs = {name: folder / name for name in configs}
    held_out = [pair.cells() for pair in compare_held_out(runs)]
    html, png = write_report(runs, folder, title="pyrl quickstart: GRPO and KL-Cov", held_out=held_out)
    console.print(result_table(runs))
    console.print(held_out_table(held_out))
    console.print(f"report: {html}\npicture: {png}\n{time.perf_counter() - started:.0f} s in all")


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


def method_configs(settings: Path, overrides: list[str], folder: Path) -> dict[str, RunConfig]:
    """The resolved config of each method; they differ in the loss block alone."""
    tree = load_tree(settings, overrides)
    for key in ("loss", "model.path", "data.path", "data.validation_path"):
        section, _, name = key.partition(".")
        if section in tree and (not name or name in tree[section]):
            raise ConfigError(f"{key}: `pyrl quickstart` sets it itself; use `pyrl train` to choose it")
    tree.setdefault("model", {})["path"] = str(folder / "supervised")
    tree.setdefault("data", {}).update(
        path=str(folder / "data" / "train.jsonl"), validation_path=str(folder / "data" / "validation.jsonl")
    )
    return {
        name: parse_config(tree | {"loss": loss.model_dump()}, origin=str(settings)) for name, loss in METHODS.items()
    }


def supervised_phase(
    config: RunConfig,
    start: Path,
    files: TaskFiles,
    destination: Path,
    *,
    steps: int = SUPERVISED_STEPS,
    target_loss: float = SUPERVISED_LOSS,
) -> None:
    """Fine-tune the random model on the demonstrations in the same learner; write it as a Hugging Face folder."""
    model = config.model.model_copy(update={"path": start})
    optimizer = config.optimizer.model_copy(update={"lr": SUPERVISED_LR})
    config = config.model_copy(update={"model": model, "optimizer": optimizer})
    parallel = init_parallel(config.parallel)
    learner = Learner(config, parallel)
    demonstrations = load_demonstrations(
        files.demonstrations, load_tokenizer(start), template=config.data.template
    )
    with StepProgress("supervised", steps, shown=("loss",)) as progress:
        fine_tune(
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
