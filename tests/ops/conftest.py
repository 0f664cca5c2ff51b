"""The devices the ops are tested on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """The CPU, and CUDA where there is a device: what is asked of a result holds for both."""
    return request.param


@pytest.fixture
def new_memory_is_nan() -> Iterator[None]:
    """`torch.empty` and its like, which hold zeros as often as not."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
