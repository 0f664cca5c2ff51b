"""Where the machine of a test run does not let programs be isolated, their tests are skipped with its reason."""

from __future__ import annotations

import pytest

from pyrl.reward.sandbox import SandboxError, check_available


@pytest.fixture(scope="session")
def namespaces() -> None:
    """User, pid, mount and network namespaces, which the sandbox needs."""
    try:
        check_available()
    except SandboxError as error:
        pytest.skip(f"needs namespaces: {error}")
