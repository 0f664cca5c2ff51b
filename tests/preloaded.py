"""What the fork server of the tests imports, once for every process that is forked from it."""

from __future__ import annotations

import gc
from importlib import import_module

MODULES = (
    "megatron.core.models.gpt",
    "pyrl.cli",
    "pyrl.evaluation.run",
    "pyrl.learner.checkpoint",
    "pyrl.learner.learner",
    "pyrl.study.runner",
    "pyrl.trainer",
    "transformers.models.qwen2.modeling_qwen2",
)

gc.disable()  # as in pyrl.cli.loading
for module in MODULES:
    import_module(module)
gc.freeze()
gc.enable()
