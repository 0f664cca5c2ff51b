"""Ctrl-C: one short message, an exit code that is not 0, and no process that is left behind."""

from __future__ import annotations

import pytest

from tests.integration.killing import interrupt, steps_done
from tests.run_job import Job

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("moment", ["while its server starts", "in a step"])
def test_ctrl_c_ends_everything_with_a_short_message(job: Job, moment: str) -> None:
    folder = job.folder / moment.replace(" ", "-")
    starting = moment == "while its server starts"
    run = job.start(folder, *(["rollout.urls=[]"] if starting else []))

    def has_come(_: object) -> bool:
        # Earlier, the library that reads the weights may make an error of its own of an interrupt.
        return "waiting for vLLM to start" in run.log() if starting else steps_done(folder) >= 2

    try:
        assert run.wait_until(has_come), run.log()
        code, left = interrupt(run)
    finally:
        run.kill()
    assert code == 130 and left == [], run.log()
    assert "interrupted on rank 0" in run.log() and "Traceback" not in run.log()
    assert not (folder / "final").exists()
