"""Names and versions of graders."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from pyrl.reward import grader_version, tasks
from pyrl.reward.tasks import UnknownTaskError, split_task


def test_a_grader_version_names_task_revision_and_libraries():
    assert grader_version("countdown") == f"countdown {tasks.REVISIONS['countdown']}"
    text = grader_version("math")
    assert text.startswith(f"math {tasks.REVISIONS['math']}, ")
    assert f"math-verify {version('math-verify')}" in text and f"sympy {version('sympy')}" in text
    assert grader_version("reasoning_gym:chain_sum") != grader_version("reasoning_gym:word_ladder")


def test_a_grader_version_changes_with_its_revision(monkeypatch):
    before = grader_version("math")
    monkeypatch.setitem(tasks.REVISIONS, "math", tasks.REVISIONS["math"] + 1)
    assert grader_version("math") != before


def test_every_task_has_a_revision():
    assert tasks.REVISIONS.keys() == tasks.LOADERS.keys()
    assert tasks.VARIANTS.keys() | tasks.LIBRARIES.keys() <= tasks.LOADERS.keys()


@pytest.mark.parametrize("task", ["maths", "math:", "countdown:x", "reasoning_gym"])
def test_no_version_without_a_grader(task):
    for function in (grader_version, split_task):
        with pytest.raises(UnknownTaskError, match="known tasks"):
            function(task)


def test_a_grader_version_needs_no_torch():
    code = "import sys, pyrl.reward as r; r.grader_version('math'); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=os.environ
    )
    assert done.stdout.strip() == "False"
