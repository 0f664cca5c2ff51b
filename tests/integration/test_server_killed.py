"""A vLLM server that dies in the middle of a step of `pyrl train` costs time and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.integration.killing import check_records, disturb
from tests.run_job import Job

pytestmark = pytest.mark.slow


def test_a_given_server_that_somebody_restarts_gets_the_policy_again(job: Job, unbroken: Path) -> None:
    """The one that this process started; it holds another model's weights until the trainer sends the policy's."""
    folder = job.folder / "given-server"
    run = job.start(folder)
    version = disturb(run, folder, os.getpid(), log=job.folder / "server.log")
    assert f"a vLLM server was restarted: all are given weights of version {version} again" in run.log()
    check_records(folder, unbroken)
