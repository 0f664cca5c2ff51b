"""The devices the ops are tested on."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """The CPU, and CUDA where there is a device: what is asked of a result holds for both."""
    return request.param
