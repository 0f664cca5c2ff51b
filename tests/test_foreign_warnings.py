"""What is kept off the user's terminal is what the libraries really say, and nothing else."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tomllib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from megatron.core.models import backends
from megatron.core.optimizer import clip_grads, optimizer
from torch.distributed import checkpoint
from torch.distributed._shard.sharded_tensor import ShardedTensor

from pyrl.foreign_warnings import FOREIGN_WARNINGS, ForeignWarning, silence_foreign_output

PROGRESS_BARS = "TQDM_DISABLE"


@pytest.fixture(autouse=True)
def everything_is_shown() -> Iterator[None]:
    """The filters of the test suite itself are off, and those that a test sets end with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield


@pytest.fixture
def silenced(monkeypatch: pytest.MonkeyPatch, everything_is_shown: None) -> None:
    monkeypatch.delenv(PROGRESS_BARS, raising=False)
    silence_foreign_output()


def import_anew(module: ModuleType) -> None:
    """Run its code as on a first import, in a module of its own that nothing else sees."""
    spec = importlib.util.find_spec(module.__name__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def import_without_apex() -> None:
    import_anew(backends)


def import_without_transformer_engine() -> None:
    import_anew(clip_grads)


def clear_the_gradient_of_a_view() -> None:
    optimizer._zero_grad_group_helper([torch.ones(2, requires_grad=True)[:1]], set_to_none=True)


def reduce_gradients() -> None:
    with pytest.raises(ValueError, match="not been initialized"):
        dist.reduce_scatter_tensor(torch.ones(1), torch.ones(1))


def gather_parameters() -> None:
    with pytest.raises(ValueError, match="not been initialized"):
        dist.all_gather_into_tensor(torch.ones(1), torch.ones(1))


def call_from(module: str, function: Callable[..., object], *arguments: object) -> None:
    """A deprecated function warns in the name of its caller, before it looks at its arguments: these are no good."""
    with contextlib.suppress(AttributeError, RuntimeError):
        exec("function(*arguments)", {"__name__": module, "function": function, "arguments": arguments})


def load_a_checkpoint() -> None:
    call_from("megatron.core.dist_checkpointing.strategies.torch", checkpoint.load_state_dict, {}, None)


def load_a_sharded_tensor() -> None:
    call_from("torch.distributed.checkpoint.default_planner", ShardedTensor.__torch_function__, torch.Tensor.size, ())


def compile_a_dependency_of_reasoning_gym() -> None:
    path = Path(importlib.util.find_spec("cellpylib").origin).with_name("ca_functions.py")
    compile(path.read_text(), str(path), "exec")


SPOKEN = (import_without_apex, import_without_transformer_engine, clear_the_gradient_of_a_view, reduce_gradients,
          gather_parameters, load_a_checkpoint, load_a_sharded_tensor,
          compile_a_dependency_of_reasoning_gym)  # fmt: skip


def warnings_of(speak: Callable[[], None]) -> list[str]:
    with warnings.catch_warnings(record=True) as raised:
        speak()
    return [str(warning.message) for warning in raised]


@pytest.mark.usefixtures("silenced")
@pytest.mark.parametrize("speak", SPOKEN)
def test_what_a_library_says_is_silenced(speak: Callable[[], None]) -> None:
    assert warnings_of(speak) == []


@pytest.mark.parametrize("filtered", FOREIGN_WARNINGS)
def test_every_filter_is_needed(filtered: ForeignWarning, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that no longer says it makes its filter superfluous."""
    others = tuple(other for other in FOREIGN_WARNINGS if other is not filtered)
    monkeypatch.setattr("pyrl.foreign_warnings.FOREIGN_WARNINGS", others)
    silence_foreign_output()
    assert any(warnings_of(speak) for speak in SPOKEN)


@pytest.mark.usefixtures("silenced")
@pytest.mark.parametrize(
    ("message", "category", "module"),
    [
        ("Apex is not installed", UserWarning, "pyrl.learner.model"),
        ("The .grad attribute of a Tensor that is not a leaf Tensor", UserWarning, "pyrl.learner.learner"),
        ("the loss is not finite", UserWarning, "megatron.core.optimizer.optimizer"),
        ("`torch.distributed.broadcast` is deprecated", FutureWarning, "torch.distributed.c10d_logger"),
        ("divide by zero encountered in divide", RuntimeWarning, "numpy"),
    ],
)
def test_our_own_warnings_and_new_ones_pass(message: str, category: type[Warning], module: str) -> None:
    with warnings.catch_warnings(record=True) as raised:
        warnings.warn_explicit(message, category, "file.py", 1, module)
    assert [str(warning.message) for warning in raised] == [message]


def test_a_users_wish_for_progress_bars_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROGRESS_BARS, "")
    silence_foreign_output()
    assert os.environ[PROGRESS_BARS] == ""


def test_the_test_suite_fails_on_our_own_warnings_and_ignores_named_ones() -> None:
    """pytest reads its filters from pyproject.toml alone: what users do not see is repeated there."""
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())
    first, ours, *ignored = project["tool"]["pytest"]["ini_options"]["filterwarnings"]
    assert first == "default" and ours.startswith("error:::(pyrl|tests|")
    for line in ignored:
        action, message, category, module = line.split(":")
        assert action == "ignore" and message and category and module, f"{line} silences more than one warning by name"
    for message, category, module in FOREIGN_WARNINGS:
        assert f"ignore:{message}:{category.__name__}:{module}" in ignored
