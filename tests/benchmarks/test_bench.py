"""The benchmark measures what it says, and says what it did not measure."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks import __main__, install, peers, timing
from benchmarks.case import Case, Ceiling, Contender
from benchmarks.measure import measure

CPU = torch.device("cpu")
ABSENT = dataclasses.replace(peers.LIGER, module="a_peer_that_nobody_has")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], str]:
    """Rows and table of one op, everything on the way to them at a tiny shape but for the compiler of torch.compile."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **_: function)
        patch.setattr(peers, "LIGER", ABSENT)
        __main__.main(["--ops", "logprob_entropy", "--device", "cpu", "--scale", "0.02", "--out", str(folder)])
    (json_file,), (markdown_file,) = folder.glob("*.json"), folder.glob("*.md")
    assert json_file.stem == markdown_file.stem
    return json.loads(json_file.read_text())["rows"], markdown_file.read_text()


def of(rows: list[dict], direction: str, dtype: str, contender: str) -> dict:
    (row,) = [r for r in rows if (r["direction"], r["dtype"], r["contender"]) == (direction, dtype, contender)]
    return row


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_case_has_ours_and_the_forms_of_pytorch(results: tuple[list[dict], str], direction: str, dtype: str) -> None:
    rows = results[0]
    ours = of(rows, direction, dtype, "pyrl")
    forms = [of(rows, direction, dtype, f"PyTorch eager, {f}") for f in ("log_softmax", "logsumexp + softmax")]
    fastest = min(form["seconds"] for form in forms)
    assert ours["ratio"] == pytest.approx(fastest / ours["seconds"])
    assert max(form["ratio"] for form in forms) == 1
    assert 0 < ours["ceiling_share"] < 2 and "elements/s" in ours["ceiling"]
    for row in [ours, *forms]:
        assert row["error"]["logprob"] < 1e-4 and row["error"]["entropy"] < 1e-4
        assert ("gradient" in row["error"]) == (direction == "backward")
    logits_bytes = 5 * 3032 * 4
    assert ours["memory_bytes"] < logits_bytes / 4 < logits_bytes < min(form["memory_bytes"] for form in forms)


def test_the_table_shows_every_row(results: tuple[list[dict], str]) -> None:
    rows, markdown = results
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    headings = sum(line.startswith("## ") for line in markdown.splitlines())
    assert headings == len({(r["direction"], r["dtype"]) for r in rows}) == 4
    assert len(lines) == len(rows) + 2 * headings
    assert "no CUDA device: not measured" in markdown and "python -m benchmarks --ops" in markdown


def test_a_trial_does_not_take_the_place_of_results() -> None:
    everything = sorted(__main__.ops.ALL)
    assert __main__._folder(everything, 1.0).name == "results"
    for measured, scale in ((everything, 0.5), (everything[:1], 1.0)):
        assert __main__._folder(measured, scale).parts[-2:] == ("build", "bench")


def test_a_missing_peer_shows_its_error(results: tuple[list[dict], str]) -> None:
    rows, markdown = results
    error = "ModuleNotFoundError: No module named 'a_peer_that_nobody_has'"
    row = of(rows, "forward", "bf16", ABSENT.name)
    assert error in row["note"] and row["seconds"] is None
    assert error in markdown


def test_a_failed_installation_shows_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / peers.INSTALL_ERRORS).write_text(json.dumps({ABSENT.name: "ERROR: no wheel"}))
    function, about = peers.load(ABSENT)
    assert function is None
    assert about == "ERROR: no wheel; ModuleNotFoundError: No module named 'a_peer_that_nobody_has'"


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ("Traceback\n  InvalidVersion: None\n  [end of output]\nerror: metadata failed", "InvalidVersion: None"),
        ("WARNING: old pip\nERROR: No matching distribution\n", "ERROR: No matching distribution"),
        ("", "pip failed in silence"),
    ],
)
def test_the_error_of_an_installation_is_the_builds_own(output: str, error: str) -> None:
    assert install.error_of(output) == error


def test_a_contender_that_fails_leaves_the_others() -> None:
    def fail() -> None:
        raise RuntimeError("this shape is not supported\nand more")

    contenders = [Contender("good", lambda: lambda: None), Contender("bad", lambda: fail, is_eager=True)]
    good, bad, absent = measure(
        Case("op", "forward", "T = 1", "fp32", contenders, Ceiling("a rate", 1, lambda: 1e9, "B"), {"peer": "why"}), CPU
    )
    assert good.seconds > 0 and good.ratio is None
    assert bad.seconds is None and bad.note == "RuntimeError: this shape is not supported"
    assert absent.contender == "peer" and absent.note == "why"


def test_peak_memory_leaves_out_what_is_returned() -> None:
    def call() -> torch.Tensor:
        first = torch.ones(1 << 20)  # 4 MiB
        second = first + 1  # 4 MiB more
        del first
        return (second + 1)[:1].clone()

    extra, result = timing.peak_memory(call, CPU)
    assert result.item() == 3
    assert 8 * 2**20 <= extra < 8.1 * 2**20


def test_calls_are_interleaved_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    seconds = timing.interleaved_seconds([lambda: lambda: order.append("a"), lambda: lambda: order.append("b")], 3)
    assert order == ["a", "b"] * 4
    assert [len(times) for times in seconds] == [3, 3]
