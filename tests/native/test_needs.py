"""A machine without nvcc skips what compiles CUDA code; CI, which is to check it, must not."""

from __future__ import annotations

import pytest

from tests.native import cuda_code


@pytest.fixture(autouse=True)
def nothing_is_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(cuda_code.importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("needs", "remedy"),
    [(cuda_code.needs_nvcc, "make nvcc"), (cuda_code.needs_nvdisasm, "pip install nvidia-cuda-nvdisasm")],
)
@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip), ("false", pytest.skip), ("true", pytest.fail)])
def test_a_missing_tool_is_an_error_in_ci_alone(monkeypatch, needs, remedy, ci, outcome):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome.Exception, match=remedy):
        needs()


def test_a_tool_that_is_there_is_neither(monkeypatch, tmp_path):
    monkeypatch.setenv("CI", "true")
    (tmp_path / "nvcc").touch(mode=0o755)
    cuda_code.needs_nvcc()
