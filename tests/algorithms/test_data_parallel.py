"""Three gloo ranks with uneven shares, one of them only padding, against one process that has the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .data_parallel_job import LOSSES, make_shards, measure

WORLD = 3
DEADLINE_SECONDS = 200
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(Path(__file__).with_name("data_parallel_job.py"))]
    jobs = [
        subprocess.Popen([*command, str(rank), str(WORLD), str(folder)], env=environment, stderr=subprocess.PIPE)
        for rank in range(WORLD)
    ]
    try:
        for job in jobs:
            _, errors = job.communicate(timeout=DEADLINE_SECONDS)
            assert job.returncode == 0, errors.decode()[-2000:]
    finally:
        for job in jobs:
            job.kill()
            job.wait()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.fixture(scope="module")
def alone() -> dict:
    return json.loads(json.dumps(measure(make_shards(1)[0], None)))


def test_counts_and_order_statistics_are_equal_to_the_bit(ranks, alone):
    assert alone["tokens"] > 100
    for rank in ranks:
        assert (rank["tokens"], rank["kth"]) == (alone["tokens"], alone["kth"])


def test_token_statistics_do_not_depend_on_the_layout(ranks, alone):
    assert all(value is not None for value in alone["statistics"].values())
    for rank in ranks:
        assert rank["statistics"] == pytest.approx(alone["statistics"], rel=1e-12)


def test_group_moments_do_not_depend_on_the_layout(ranks, alone):
    assert alone["moments"][1][:6] == [4.0] * 6  # every group is whole again
    for rank in ranks:
        for got, wanted in zip(rank["moments"], alone["moments"], strict=True):
            assert got == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_selection_is_bit_identical_and_loss_and_covariance_agree(ranks, alone, name):
    chosen = [uid for rank in ranks for uid in rank[name]["uids"]]
    assert sorted(chosen) == alone[name]["uids"] and len(chosen) > 1
    assert sum(bool(rank[name]["uids"]) for rank in ranks) > 1  # they lie on more than one rank
    for rank in ranks:
        assert rank[name]["covariance"] == pytest.approx(alone[name]["covariance"], rel=1e-12)
        assert rank[name]["quadrants"] == pytest.approx(alone[name]["quadrants"], rel=1e-12)
        assert rank[name]["loss"] == pytest.approx(alone[name]["loss"], abs=1e-6)


def test_ranks_that_sum_different_metrics_are_told(ranks):
    assert "different metrics; this one has a, c" in ranks[0]["other_names"]
    assert "different metrics; this one has a, b" in ranks[1]["other_names"]
