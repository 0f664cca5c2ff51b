"""Which files of tests go to one process of `make test`, and which start first."""

from __future__ import annotations

from xdist.scheduler.loadfile import LoadFileScheduling

SHARED = {
    "job": (
        "tests/integration/test_train.py",
        "tests/integration/test_train_ranks.py",
        "tests/integration/test_server_killed.py",
        "tests/integration/test_interrupt.py",
        "tests/integration/test_study.py",
    ),
    "served": ("tests/integration/test_vllm_parity.py", "tests/integration/test_rollout.py"),
    "smollm2": (
        "tests/integration/test_smollm2.py",
        "tests/integration/test_smollm2_study.py",
        "tests/integration/test_hf_parity.py",
        "tests/weights/test_convert.py",
    ),
}
"""Fixture of the session that is costly to make -> files that use it. They take longest, so they start first."""
_FIRST = [file for files in SHARED.values() for file in files]


def place(nodeid: str) -> int:
    """Key by which tests are sorted; tests of one file, and files that are not named, keep their order."""
    file = nodeid.partition("::")[0]
    return _FIRST.index(file) if file in _FIRST else len(_FIRST)


class SharedFixtureScheduling(LoadFileScheduling):
    """As xdist's `--dist loadfile`, but files that share a costly fixture go to one process."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return next((name for name, files in SHARED.items() if file in files), file)
