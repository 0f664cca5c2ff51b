"""The metric table, and the page made from it."""

import re
from pathlib import Path

import pytest

from pyrl.telemetry.names import (
    COVARIANCE_TOP_SHARES,
    GROUP_TITLES,
    METRICS,
    PHASES,
    covariance_top_name,
    reproducible_names,
    to_markdown,
)

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"

PROMISED = """step gradient_step policy_version reward_mean reward_mean_kept entropy entropy_response_mean
covariance_mean selected_tokens loss grad_norm logprob_gap_mean logprob_gap_p99 logprob_gap_max tokens_per_second
seconds_step""".split()
"""Names that programs outside the repository read from metrics.jsonl."""


def test_docs_page_is_up_to_date() -> None:
    assert DOCS.read_text() == to_markdown(), "run: python -m pyrl.telemetry.names > docs/metrics.md"


def test_every_metric_is_on_the_page_once() -> None:
    page = to_markdown()
    for name in METRICS:
        assert len(re.findall(rf"^\| `{re.escape(name)}`", page, re.MULTILINE)) == 1, name
    assert {metric.group for metric in METRICS.values()} == set(GROUP_TITLES)


@pytest.mark.parametrize("name", PROMISED)
def test_promised_names_are_in_every_record(name: str) -> None:
    assert METRICS[name].contract


def test_every_phase_has_its_metric() -> None:
    assert {f"seconds_{phase}" for phase in PHASES} | {"seconds_step"} == {
        name for name in METRICS if name.startswith("seconds_")
    }


def test_covariance_names_are_the_shares_written_as_fractions() -> None:
    names = [covariance_top_name(share) for share in COVARIANCE_TOP_SHARES]
    assert names == [f"covariance_top_{text}" for text in ("2e-4", "2e-3", "2e-2", "2e-1", "5e-1")]
    assert set(names) <= set(METRICS)
    with pytest.raises(ValueError, match=r"share 0\.3"):
        covariance_top_name(0.3)


def test_only_times_and_memory_may_differ_between_equal_runs() -> None:
    varying = set(METRICS) - set(reproducible_names())
    # Evaluations are graded beside the steps: which step finds them graded is a matter of time.
    timed = {n for n in METRICS if n.startswith(("seconds_", "memory_", "evaluation_"))}
    assert varying == timed | {"tokens_per_second"}
