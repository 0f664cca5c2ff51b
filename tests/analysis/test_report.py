"""Reading run folders, and the report made from them."""

import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from pyrl.analysis.plots import (
    CHARTS,
    RUN_COLOURS,
    chart_svg,
    charts_with_data,
    draw_pass_at_k,
    legend_columns,
    phase_seconds,
    run_handles,
    smooth,
    smoothing_window,
)
from pyrl.analysis.records import config_differences, load_run, load_runs
from pyrl.analysis.report import compare, format_cell, write_report
from pyrl.telemetry.jsonl import RecordFileError
from pyrl.telemetry.names import METRICS
from pyrl.telemetry.recorder import RunRecorder

STEPS = 60
SENTENCE = "KL-Cov <kept> 4 times the entropy."


def write_run(folder: Path, *, end_entropy: float, selected: int | None, loss: str) -> Path:
    """A run folder as the trainer leaves it: step 0 holds only a validation."""
    with RunRecorder(folder) as recorder:
        recorder.write_config(f"seed: 0\nloss:\n  name: {loss}\nrollout:\n  urls: []\n")
        recorder.write({"step": 0, "validation_reward_mean": 0.05, "validation_n": 20, "seconds_step": 500.0})
        for step in range(1, STEPS + 1):
            share = step / STEPS
            recorder.write(
                {
                    "step": step, "gradient_step": 4 * step, "entropy": 0.7 + (end_entropy - 0.7) * share,
                    "reward_mean": 0.1 + 0.2 * share, "covariance_mean": 0.01, "selected_tokens": selected,
                    "grad_norm": 0.5, "logprob_gap_mean": 1e-6, "logprob_gap_p99": 1e-5,
                    "response_length_mean": 9.0, "response_tokens": 100, "seconds_step": 2.0,
                    "seconds_rollout": 1.0, "seconds_update": 0.5, "verdicts_unjudged": 0,
                    "validation_reward_mean": 0.25 if step == STEPS else None,
                }
            )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("runs")
    return {
        "GRPO <a&b>": write_run(base / "grpo", end_entropy=0.1, selected=None, loss="ppo_clip"),
        "KL-Cov $x_1$": write_run(base / "kl", end_entropy=0.4, selected=30, loss="kl_cov"),
    }


@pytest.fixture(scope="module")
def report(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    first, second = folders
    return write_report(
        folders,
        tmp_path_factory.mktemp("out") / "new",
        "Two runs",
        sentence=SENTENCE,
        pass_at_k={first: {1: 0.25, 2: 0.375, 4: 0.5}, second: {1: 0.125, 2: 0.25}},
    )


class Page(html.parser.HTMLParser):
    """Text and the attributes that could load something."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.links, self.open, self.ids = "", [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [(tag, k, v) for k, v in attrs if k in ("src", "href", "xlink:href", "data", "srcset")]
        self.ids += [v for k, v in attrs if k == "id"]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_self_contained(report: tuple[Path, Path]) -> None:
    text = report[0].read_text()
    page = Page(text)
    assert page.open == []
    assert all(v.startswith("#") for _, _, v in page.links), page.links
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|url\((?!#)", text)
    for _, _, target in page.links:
        assert target[1:] in page.ids
    assert len(page.ids) == len(set(page.ids))


def test_the_page_shows_both_runs_and_their_numbers(report: tuple[Path, Path]) -> None:
    raw = report[0].read_text()
    text = Page(raw).text
    assert "Two runs" in text and text.count("GRPO <a&b>") >= 3 and text.count("KL-Cov $x_1$") >= 3
    assert "<a&b>" not in raw
    for name in ("Policy entropy", "Reward", "Covariance", "Selected tokens", "Rollout-learner gap", "Time of a step",
                 "pass@k, held-out prompts", SENTENCE):  # fmt: skip
        assert name in text
    assert "Clipped tokens" not in text  # no run has it
    assert "loss.name" in text and "ppo_clip" in text and "kl_cov" in text
    assert raw.count("<svg") == 8 and "prefers-color-scheme: dark" in raw and "width=device-width" in raw


def test_the_png_is_a_picture_with_the_runs_colours(report: tuple[Path, Path]) -> None:
    with Image.open(report[1]) as image:
        image.verify()
    with Image.open(report[1]) as image:
        assert image.width >= 1000 and image.height >= 800
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in RUN_COLOURS[:2]:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == rgb).all(axis=1).sum() > 200, colour
    assert sorted(p.name for p in report[1].parent.iterdir()) == ["report.html", "report.png"]


def test_a_chart_draws_every_curve_in_theme_colours(folders: dict[str, Path]) -> None:
    runs = load_runs(folders)
    chart = next(c for c in CHARTS if c.key == "reward")
    svg = chart_svg(chart, runs)
    for number in (0, 1):
        # raw dots, running mean, joined validation circles, and one circle marker each
        assert svg.count(f"stroke: var(--run-{number})") >= 3
    assert "var(--run-2)" not in svg and not re.search(r"#[0-9a-f]{6}\b(?!\")", svg.replace("url(#", ""))
    assert "0.25" in svg  # tick labels are not rounded with the coordinates
    assert svg == chart_svg(chart, runs)


def test_pass_at_k_has_a_point_for_each_k_of_each_run(folders: dict[str, Path]) -> None:
    runs = load_runs(folders)
    axes = Figure().add_subplot()
    first, second = (run.label for run in runs)
    draw_pass_at_k(axes, runs, {first: {1: 0.25, 2: 0.375, 4: 0.5}, second: {1: 0.125, 2: 0.25}})
    points = [(list(line.get_xdata()), list(line.get_ydata()), line.get_color()) for line in axes.lines]
    assert points == [
        ([1, 2, 4], [0.25, 0.375, 0.5], RUN_COLOURS[0]), ([1, 2], [0.125, 0.25], RUN_COLOURS[1]),
    ]  # fmt: skip
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4"]


def test_every_chart_reads_known_metrics() -> None:
    for chart in CHARTS:
        assert {chart.metric, chart.marks, chart.second} - {None} <= set(METRICS)


def test_a_run_that_is_all_zero_or_one_step_long_is_drawn(tmp_path: Path) -> None:
    with RunRecorder(tmp_path / "r") as recorder:
        zeros = {"entropy": 0.0, "logprob_gap_mean": 0.0, "logprob_gap_p99": 0.0}
        recorder.write({"step": 1, "seconds_step": 0.1} | zeros)
    html_path, png_path = write_report({"only": tmp_path / "r"}, tmp_path, "t")
    assert html_path.read_text().count("<svg") == 2 and png_path.stat().st_size > 10_000


def test_a_long_run_stays_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"step": s, "entropy": float(v)} for s, v in enumerate(rng.random(5000), start=1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = [load_run(tmp_path)]
    assert [c.key for c in charts_with_data(runs)] == ["entropy"]
    assert len(chart_svg(CHARTS[0], runs)) < 400_000


def test_start_and_end_are_means_of_defined_values(folders: dict[str, Path]) -> None:
    rows = {row.metric: row for row in compare(load_runs(folders))}
    assert rows["entropy"].start[0] == pytest.approx(0.7 - 0.6 * np.mean([1, 2, 3, 4, 5]) / STEPS)
    assert rows["entropy"].end[1] == pytest.approx(0.7 - 0.3 * np.mean(np.arange(41, 61)) / STEPS)
    assert (rows["validation_reward_mean"].start, rows["validation_reward_mean"].end) == ((0.05, 0.05), (0.25, 0.25))
    assert rows["selected_tokens"].end == (None, 30)
    assert "truncated_fraction" not in rows


def test_phase_times_add_up_to_the_step(folders: dict[str, Path]) -> None:
    run = load_run(folders["GRPO <a&b>"])
    assert phase_seconds(run) == {"rollout": 1.0, "update": 0.5, "other": 0.5}


def test_smoothing_is_a_centred_mean() -> None:
    values = np.array([1.0, 2.0, 6.0, 3.0, 8.0])
    assert smooth(values, 3).tolist() == pytest.approx([1.5, 3.0, 11 / 3, 17 / 3, 5.5])
    assert smooth(values, 1).tolist() == values.tolist()
    assert smooth(np.array([]), 3).size == 0
    assert [smoothing_window(n) for n in (1, 49, 50, 250, 1000)] == [1, 1, 3, 11, 41]


def test_config_differences_name_the_loss_only(folders: dict[str, Path]) -> None:
    assert config_differences(load_runs(folders)) == {"loss.name": ["ppo_clip", "kl_cov"]}


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "\N{EN DASH}"), (11.0, "11.0"), (0.0, "0.00"), (123.4, "123"), (12345.6, "12,346"), (7, "7"),
     (0.00075, "7.5e-4"), ("yes", "yes"), (True, "True")],
)  # fmt: skip
def test_table_cells(value: object, text: str) -> None:
    assert format_cell(value) == text


def test_unreadable_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="runs is empty"):
        load_runs({})
    with pytest.raises(RecordFileError, match="gone is not a folder"):
        load_run(tmp_path / "gone")
    with pytest.raises(RecordFileError, match=r"metrics.jsonl does not exist: is .* a run folder"):
        load_run(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1')
    with pytest.raises(RecordFileError, match="no finished step yet"):
        load_run(tmp_path)
    metrics.write_text('{"step": 1}\n{"step": 1}\n')
    with pytest.raises(RecordFileError, match="step 1 is recorded twice"):
        load_run(tmp_path)
    metrics.write_text('{"step": 1}\n')
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(RecordFileError, match=r"config\.yaml is not valid YAML"):
        load_run(tmp_path)


@pytest.mark.parametrize("length", [4, 12, 25, 52, 70])
def test_a_legend_stays_on_the_sheet_and_tells_18_runs_apart(length: int) -> None:
    labels = [f"{i:02}".ljust(length, "m") for i in range(18)]
    figure = Figure(figsize=(14.0, 6.0))
    handles, columns = run_handles(labels), legend_columns(labels, inches=14.0, size=11.5)
    legend = figure.legend(handles=handles, ncols=columns, fontsize=11.5, loc="upper left")
    FigureCanvasAgg(figure).draw()
    assert legend.get_window_extent().width < figure.bbox.width
    assert len({(handle.get_color(), handle.get_linestyle()) for handle in handles}) == len(labels)
