"""`pyrl analyze` from logs to numbers, page and picture."""

import html.parser
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyrl.analysis.analyze import Options, analyze, to_json, write_analysis
from pyrl.analysis.entropy_dynamics import MEASURED
from pyrl.analysis.entropy_law import fit_entropy_law
from pyrl.analysis.law_report import shared_findings
from pyrl.config import ConfigError
from tests.analysis.curves import A, B, ar1, law_curve


def table(path: Path, entropy, reward, **more) -> Path:
    columns = {"step": np.arange(1, len(entropy) + 1), "entropy": entropy, "reward": reward, **more}
    rows = [dict(zip(columns, map(float, values), strict=True)) for values in zip(*columns.values(), strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if v == v}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs of the law, one bent, one with dynamics, one that cannot be fitted."""
    base, rng = tmp_path_factory.mktemp("logs"), np.random.default_rng(0)
    files = [table(base / f"run{i}.jsonl", *law_curve(120, rng, rho=0.5)) for i in range(3)]
    entropy, _ = law_curve(120, rng)
    x = np.exp(entropy)
    files.append(table(base / "bent<b>.jsonl", entropy, 0.8 - 0.3 * x + 0.5 * (x - 1.5) ** 2 + 0.01 * ar1(120, 0, rng)))
    entropy, reward = law_curve(120, rng)
    cov = 0.01 + 0.003 * rng.standard_normal(120)
    change = -1.5 * cov + 0.001 * rng.standard_normal(120)
    entropy[3] = np.nan
    files.append(table(base / "moves.jsonl", entropy, reward, **{MEASURED: change, "cov_response_logp_adv": cov}))
    files.append(table(base / "flat.jsonl", np.full(30, 0.5), np.linspace(0, 1, 30)))
    return files


@pytest.fixture(scope="module")
def written(logs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "new"
    write_analysis(logs, out, Options(sizes=("0.5B", "1.5B", "3B", "7B", "14b", "32e9")))
    return out


class Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.references, self.open = "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data", "srcset")]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "br"):
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_self_contained_and_says_what_was_found(written: Path) -> None:
    raw = (written / "report.html").read_text()
    page = Page(raw)
    assert page.open == [] and all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|url\((?!#)", raw)
    assert "prefers-color-scheme: dark" in raw and "width=device-width" in raw and "<b>.jsonl" not in raw
    text = " ".join(page.text.split())
    assert text.count("follows the law (a = ") == 4
    assert "bent<b> does not follow the law: bent (reward is not linear in exp(H): a quadratic term has t =" in text
    assert "flat no law fitted: entropy is constant (0.5 in all 30 finite pairs)" in text
    assert "1 of 120 steps lack entropy or reward" in text
    assert "With steps as the observations, one law for all runs is rejected: F(8, " in text
    headings = "Early prediction", "Model size", "Entropy dynamics", "Where the numbers come from", "its rivals"
    for heading in headings:
        assert heading in text
    # law, entropy, five early predictions, sizes, dynamics scatter and time
    assert raw.count("<svg") == 10 and not re.search(r'(?:fill|stroke): #(?!fff)', raw)


def test_the_json_holds_the_numbers_of_the_fit(written: Path, logs: list[Path]) -> None:
    tree = json.loads((written / "analysis.json").read_text(), parse_constant=lambda c: pytest.fail(f"JSON holds {c}"))
    rows = [json.loads(line) for line in logs[0].read_text().splitlines()]
    law = fit_entropy_law([r["entropy"] for r in rows], [r["reward"] for r in rows])
    run = tree["runs"][0]
    for name in ("a", "b", "a_se", "b_se", "ceiling", "ceiling_se", "r2", "rmse", "n", "n_dropped"):
        assert run["law"][name] == getattr(law, name)
    assert run["law"]["a_interval_95"] == list(law.interval("a"))
    assert run["law"]["covariance"] == law.covariance.tolist()
    assert run["check"]["verdict"] == "follows" and run["early_prediction"]["n_fit"] == 18
    assert run["budget"]["spent"] > 0.8 and run["parameters"] == 5e8 and run["columns"]["reward"] == "reward"
    assert tree["runs"][4]["law"]["n_dropped"] == 1 and tree["runs"][4]["steps_without_entropy"] == 1
    dynamics = tree["runs"][4]["dynamics"][0]
    assert dynamics["slope_low"] < 1.5 < dynamics["slope_high"] and dynamics["correlation"] > 0.9
    assert tree["runs"][5]["law"] is None and "constant" in tree["runs"][5]["problem"]
    assert set(tree["size_trends"]) == {"a", "b"} and tree["size_trends"]["a"]["n"] == 5


def test_the_picture_is_a_picture(written: Path) -> None:
    with Image.open(written / "report.png") as image:
        assert image.width > 1000
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert (pixels == (0, 0x72, 0xB2)).all(axis=1).sum() > 200
    assert sorted(p.name for p in written.iterdir()) == ["analysis.json", "report.html", "report.png"]


def test_runs_of_one_law_share_it(logs: list[Path]) -> None:
    analysis = analyze(logs[:3], Options())
    assert analysis.one_law.p > 0.05
    assert analysis.one_law.a == pytest.approx(A, abs=0.02) and analysis.one_law.b == pytest.approx(B, abs=0.03)
    assert analysis.groups is None and analysis.groups_problem is None and not analysis.size_trends
    single = analyze(logs[:1], Options())
    assert single.one_law is None and single.one_law_problem is None


def pyrl_run(folder: Path, name: str, seed: int, b: float) -> Path:
    table(folder / "metrics.jsonl", *law_curve(60, np.random.default_rng(seed), b=b))
    text = re.sub(r'"reward"', '"policy_version": 0, "reward_mean"', (folder / "metrics.jsonl").read_text())
    (folder / "metrics.jsonl").write_text(re.sub(r'"step": (\d+)\.0', r'"step": \1', text))
    (folder / "config.yaml").write_text(f"seed: {seed}\nmodel:\n  path: /m/{seed}\nloss:\n  name: {name}\n")
    return folder


def test_runs_that_differ_in_seed_and_places_are_one_group(tmp_path: Path) -> None:
    for seed in range(8):
        shift = 0.01 * np.random.default_rng(seed + 50).standard_normal()
        pyrl_run(tmp_path / f"r{seed}", ("ppo_clip", "kl_cov")[seed % 2], seed, B + shift + 0.3 * (seed % 2))
    analysis = analyze([tmp_path], Options())
    assert [run.group for run in analysis.runs] == ["loss.name=ppo_clip", "loss.name=kl_cov"] * 4
    assert analysis.groups.runs == 8 and analysis.groups.p < 0.01
    given = analyze([tmp_path], Options(groups=tuple("xxyyxxyy")))
    assert given.groups.groups == ("x", "y") and given.groups.p > 0.05
    tree = to_json(given)
    assert tree["groups"]["p"] == given.groups.p


def test_the_test_over_runs_comes_before_that_over_steps(tmp_path: Path) -> None:
    """Seeds alone move the laws: over steps one law is rejected, over runs it is not."""
    for seed in range(8):
        shift = 0.05 * np.random.default_rng(seed + 50).standard_normal()
        pyrl_run(tmp_path / f"r{seed}", ("ppo_clip", "kl_cov")[seed % 2], seed, B + shift)
    analysis = analyze([tmp_path], Options())
    over_runs, over_steps, *_ = shared_findings(analysis)
    assert over_runs.startswith("With runs as the observations, one law for all groups") and "not rejected" in over_runs
    assert over_steps.startswith("With steps as the observations, one law for all runs is rejected")
    tree = to_json(analysis)
    assert list(tree).index("groups") < list(tree).index("one_law")
    assert (tree["groups"]["observations"], tree["one_law"]["observations"]) == ("runs", "steps")
    rivals = tree["runs"][0]["check"]["rivals"]["candidates"]
    assert {c["name"] for c in rivals} >= {"exp(H)", "H", "log H", "step", "exp(H) + step"} and rivals[0]["behind"] == 0


def test_same_names_are_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    paths = [table(tmp_path / d / "log.jsonl", *law_curve(30, rng)) for d in ("x", "y")]
    assert [run.label for run in analyze(paths, Options()).runs] == ["x/log", "y/log"]
    assert [run.label for run in analyze(paths, Options(labels=("p", "q"))).runs] == ["p", "q"]


def test_a_short_log_is_analyzed_as_far_as_it_goes(tmp_path: Path) -> None:
    log = table(tmp_path / "short.jsonl", *law_curve(8, np.random.default_rng(2)))
    run = write_analysis([log], tmp_path / "out", Options()).runs[0]
    assert run.law.n == 8 and run.early is None and "leave 3 to predict" in run.early_problem
    assert "No early prediction" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(labels=("a",)), "1 labels for 2 runs"),
        (Options(groups=("a", "b", "c")), "3 groups for 2 runs"),
        (Options(sizes=("big", "1B")), "--size big: want a number of parameters"),
        (Options(sizes=("0", "1B")), "--size 0"),
        (Options(early_share=15), "--early-share 15"),
        (Options(method="lad"), "--method lad: want one of ols, huber"),
    ],
)
def test_contradictory_options_are_refused(logs: list[Path], options: Options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        analyze(logs[:2], options)


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pyrl", "analyze", *map(str, arguments)], capture_output=True,
                          text=True, timeout=120)  # fmt: skip


def test_the_command_prints_its_findings(logs: list[Path], tmp_path: Path) -> None:
    done = command(logs[0], "--out", tmp_path / "out", "--method", "huber", "--label", "one")
    assert done.returncode == 0, done.stderr
    assert "one: follows the law (a = " in done.stdout and "written:" in done.stdout
    assert json.loads((tmp_path / "out" / "analysis.json").read_text())["options"]["method"] == "huber"


def test_bad_input_ends_with_2_and_writes_nothing(tmp_path: Path) -> None:
    few = table(tmp_path / "few.jsonl", [0.5, 0.4, 0.3], [0.1, 0.2, 0.3])
    still = table(tmp_path / "still.jsonl", np.linspace(1, 0, 20), np.full(20, 0.25))
    done = command(tmp_path / "gone", "--out", tmp_path / "out")
    assert done.returncode == 2 and "gone does not exist" in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(ConfigError, match=r"few: 3 finite pairs.*; still: reward is constant \(0\.25"):
        write_analysis([few, still], tmp_path / "out", Options())
    assert not (tmp_path / "out").exists()
