"""The `pyrl` command. Exit codes: 0 done, 2 bad input, 1 failure, 3 a study that is not done yet, 130 interrupted by
Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pyrl.config import ConfigError, load_config
from pyrl.evaluation.errors import EvaluationError
from pyrl.foreign_warnings import silence_foreign_output
from pyrl.interrupts import INTERRUPTED, ending_at_once
from pyrl.telemetry.log import log_to_terminal

log = logging.getLogger("pyrl")
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
errors = Console(stderr=True, soft_wrap=True, highlight=False)
UNFINISHED = 3

RunFolder = Annotated[Path | None, typer.Option(help="Where the run is written; default runs/<config>.")]
Jobs = Annotated[int, typer.Option(help="Runs at a time, each with servers of its own.", min=1)]


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file, see configs/.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]")] = None,
    run_folder: RunFolder = None,
) -> None:
    """Train by reinforcement learning; under torchrun, on every rank it starts."""
    resolved = load_config(config, overrides or [])
    with loading():
        from pyrl.learner.parallel import destroy_parallel
        from pyrl.trainer import train as run_training  # imports torch and Megatron-Core: only when needed

    folder = run_folder or Path("runs") / config.stem
    run_training(resolved, folder)
    destroy_parallel()  # left to the end of the process, NCCL warns of it
    if os.environ.get("RANK", "0") == "0":
        from pyrl.analysis.report import write_report
        from pyrl.evaluation.held_out import compare_held_out, pass_at_k_curve

        run = {folder.name: folder}
        held_out = [pair.cells() for pair in compare_held_out(run)]
        curves = {folder.name: pass_at_k_curve(folder)}
        write_report(run, folder, title=f"pyrl: {folder.name}", held_out=held_out, pass_at_k=curves)


@app.command()
def quickstart(
    folder: Annotated[Path, typer.Option("--folder", help="Where the runs and the report are written.")] = Path(
        "runs/quickstart"
    ),
    config: Annotated[Path, typer.Option(help="Settings that the runs share.")] = Path("configs/quickstart.yaml"),
    methods: Annotated[str, typer.Option(help="Of grpo, clip_cov, kl_cov, with commas.")] = "grpo,clip_cov",
    jobs: Jobs = 2,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]")] = None,
) -> None:
    """Train a small model from random weights with GRPO and with Clip-Cov, and compare what they find."""
    with loading():
        from pyrl.quickstart.run import run_quickstart

    run_quickstart(folder, config, overrides or [], methods.split(","), workers=jobs)


@app.command()
def doctor() -> None:
    """Print the versions of everything that matters and what would keep a run from starting."""
    from pyrl.doctor import run_doctor

    raise typer.Exit(run_doctor(Console()))


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A run's checkpoint, a folder with pytorch_model*.bin or one GGUF file, a GGUF file, or package:NAME."
        ),
    ],
    destination: Annotated[Path, typer.Argument(help="Hugging Face folder to write.")],
) -> None:
    """Convert a checkpoint of a run, GGUF weights or pickled ones to a Hugging Face folder of safetensors."""
    with loading():
        from pyrl.learner.checkpoint_store import MANIFEST
        from pyrl.learner.export import export_checkpoint
        from pyrl.weights.convert import convert_checkpoint
        from pyrl.weights.hf_io import has_pickled_weights
        from pyrl.weights.pickled import convert_pickled

    if (Path(source) / MANIFEST).is_file():
        export_checkpoint(Path(source), destination)
    elif has_pickled_weights(source):
        convert_pickled(source, destination)
    else:
        convert_checkpoint(source, destination)


@app.command()
def analyze(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Run folders, folders of runs, or logs.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.png and analysis.json.")] = Path("analysis"),
    step: Annotated[str | None, typer.Option(help="Column of the step.")] = None,
    entropy: Annotated[str | None, typer.Option(help="Column of the entropy, nats a token.")] = None,
    reward: Annotated[str | None, typer.Option(help="Column of the reward.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Name of a run; once a run, in their order.")] = None,
    group: Annotated[list[str] | None, typer.Option(help="Group of a run, its method say; as --label.")] = None,
    size: Annotated[list[str] | None, typer.Option(help="Parameters of a run, as 1.5B; as --label.")] = None,
    method: Annotated[str, typer.Option(help="ols, or huber where some rewards are outliers.")] = "ols",
    early_share: Annotated[float, typer.Option(help="Fraction of the steps that predicts the others.")] = 0.15,
) -> None:
    """Fit R = -a exp(H) + b to training logs of pyrl, verl, TRL, OpenRLHF or any table, and write a report."""
    from pyrl.analysis.analyze import Options, write_analysis
    from pyrl.analysis.law_report import finding, notes, shared_findings

    options = Options(step, entropy, reward, tuple(label or ()), tuple(group or ()), tuple(size or ()), method,
                      early_share)  # fmt: skip
    analysis = write_analysis(paths, out, options)
    for run in analysis.runs:
        print(f"{run.label}: {' '.join([finding(run), *notes(run)])}")
    for said in shared_findings(analysis):
        print(said)
    print(f"written: {out / 'report.html'}, {out / 'report.png'}, {out / 'analysis.json'}")


@app.command()
def study(
    config: Annotated[Path, typer.Argument(help="A YAML file, see configs/study/.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]")] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where runs and report are written; default runs/<config>.")
    ] = None,
    time_limit: Annotated[float | None, typer.Option(help="Hours; then stop between two steps.", min=0.0)] = None,
    jobs: Jobs = 1,
    report_only: Annotated[bool, typer.Option("--report-only", help="Write the report of the runs that are done.")] = (
        False
    ),
) -> None:
    """Run methods x seeds x settings and write one report; called again, it goes on."""
    with loading():
        from pyrl.study.config import load_study
        from pyrl.study.report import write_study_report
        from pyrl.study.runner import run_study

    settings, folder = load_study(config, overrides or []), folder or Path("runs") / config.stem
    done = report_only or run_study(settings, folder, time_limit=time_limit, workers=jobs)
    written = write_study_report(settings, folder)
    if report_only and not written:
        raise ConfigError(f"{folder}: none of the study's runs is done, there is nothing to report")
    if written:
        print(f"written: {', '.join(str(path) for path in written)}")
    if not done:
        raise typer.Exit(UNFINISHED)


@app.command()
def evaluate(
    config: Annotated[str | None, typer.Argument(help="A YAML file, see configs/eval/.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]")] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where it is written; default runs/eval/<config>.")
    ] = None,
    regrade: Annotated[Path | None, typer.Option(help="Grade this folder's samples again, without a model.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two folders: differences on the same questions, in pairs.")
    ] = None,
) -> None:
    """Score a model on benchmarks, with intervals; called again, it goes on."""
    with loading():
        from pyrl.analysis.evaluation_page import write_evaluation_page
        from pyrl.evaluation.config import load_evaluation
        from pyrl.evaluation.run import regrade_folder, run_evaluation
        from pyrl.evaluation.tables import comparison_table, published_table, score_table
        from pyrl.run_folder import locked

    terminal = Console(width=None if sys.stdout.isatty() else 160)
    if compare is not None:
        if config or regrade:
            raise ConfigError("--compare takes two folders and nothing else")
        terminal.print(comparison_table(*compare))
        return
    if regrade is not None:
        given = [*([config] if config else []), *(overrides or [])]
        if any("=" not in text for text in given):
            raise ConfigError(f"--regrade takes key=value overrides and no config file, got {config}")
        folder = regrade
        if not folder.is_dir():
            raise ConfigError(f"--regrade {folder} is not a folder")
        with locked(folder, option="folder"):
            settings, scores = regrade_folder(folder, given)
    elif config is None:
        raise ConfigError("give a config file (configs/eval/), --regrade DIR or --compare A B")
    else:
        settings = load_evaluation(Path(config), overrides or [])
        folder = folder or Path("runs/eval") / Path(config).stem
        with locked(folder, option="--folder"):
            scores = run_evaluation(settings, folder)
    terminal.print(score_table(scores))
    if (paper := published_table(scores)) is not None:
        terminal.print(paper)
    page = write_evaluation_page(folder, settings.page_samples)
    print(f"written: {folder / 'scores.json'}, {folder / 'samples.jsonl'}, {page}")


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """For the imports of a command, which take 5 to 30 s: a first sign of life, and no search for garbage, of which
    they leave none (a quarter of the time)."""
    if os.environ.get("RANK", "0") == "0":
        log.info("loading PyTorch and the other libraries")
    gc.disable()
    try:
        with ending_at_once():
            yield
    finally:
        gc.enable()


def main() -> None:
    """Run the command line; turn bad input into one message and exit code 2."""
    log_to_terminal()
    silence_foreign_output()
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:  # which is all that typer makes of Ctrl-C
            errors.print(f"interrupted on rank {os.environ.get('RANK', '0')}", style="bold red", markup=False)
        raise
    except ConfigError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # once a node: a folder may be missing on one of them alone
            errors.print(f"error: {error}", style="bold red", markup=False)
        sys.exit(2)
    except EvaluationError as error:
        errors.print(f"error: {error}", style="bold red", markup=False)
        sys.exit(1)
    except Exception as error:
        full = _full_disk(error)
        if full is None:
            traceback.print_exc()
        said = f"failed on rank {os.environ.get('RANK', '0')}: {full or error}"
        errors.print(said, style="bold red", markup=False)
        sys.exit(1)


def _full_disk(error: BaseException | None) -> str | None:
    """What to say where that is what `error` comes from: there is nothing to find in a traceback then."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{error}. Free some space; the same command goes on from the last checkpoint, if there is one"
        error = error.__cause__ or error.__context__
    return None
