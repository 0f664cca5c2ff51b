"""Megatron's CUDA calls land on the CPU; everybody else's still fail."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest
import torch

from pyrl.learner import cpu_backend

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="maps CUDA to the CPU where there is no CUDA")


MEGATRON_CODE = """
import torch
def moved(x): return x.cuda()
def type_name(x): return x.type()
def converted(x): return x.type(torch.float64)
def made(): return torch.empty(1, device=torch.cuda.current_device())
def draw():
    torch.cuda.manual_seed(3)
    state = torch.cuda.get_rng_state()
    first = torch.rand(2)
    torch.cuda.set_rng_state(state)
    return first, torch.rand(2)
def streams():
    torch.cuda.default_stream().wait_stream(torch.cuda.current_stream())
    torch.cuda.synchronize()
"""


@pytest.fixture(scope="module")
def megatron() -> ModuleType:
    """A module that counts as Megatron's."""
    cpu_backend.install()
    cpu_backend.install()  # a second call changes nothing
    module = ModuleType("megatron.core.example")
    exec(MEGATRON_CODE, module.__dict__)
    return module


def test_megatron_gets_the_cpu(megatron: ModuleType) -> None:
    x = torch.ones(2)
    assert megatron.moved(x) is x
    assert megatron.made().device.type == "cpu"
    assert megatron.type_name(x) == "torch.cuda.FloatTensor"
    assert megatron.type_name(x.bfloat16()) == "torch.cuda.BFloat16Tensor"
    assert megatron.converted(x).dtype == torch.float64
    first, second = megatron.draw()
    assert torch.equal(first, second)
    megatron.streams()


def test_factories_of_the_modules_that_name_cuda(megatron: ModuleType) -> None:
    from megatron.core.optimizer import clip_grads
    from megatron.core.pipeline_parallel import schedules

    for module in (clip_grads, schedules):
        assert module.torch.zeros(2, device="cuda").device.type == "cpu"
        assert module.torch.zeros(2, device="meta").device.type == "meta"
        assert module.torch.tensor([1.0], device=torch.device("cuda", 0)).tolist() == [1.0]
        assert module.torch.nn is torch.nn


def test_other_callers_get_torch(megatron: ModuleType) -> None:
    x = torch.ones(2)
    assert x.type() == "torch.FloatTensor"
    for call in (lambda: torch.zeros(1, device="cuda"), lambda: x.cuda(), lambda: torch.cuda.current_device()):
        with pytest.raises((AssertionError, RuntimeError)):
            call()


def test_torch_itself_is_whole(megatron: ModuleType) -> None:
    """A fresh process, because torch caches its list of factories: after `install` a device context still rules."""
    code = (
        "import torch; from pyrl.learner import cpu_backend; cpu_backend.install()\n"
        "with torch.device('meta'):\n"
        "    assert all(t.is_meta for t in (torch.zeros(1), torch.empty(1), torch.arange(3), torch.tensor([1.0])))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_it_refuses_a_machine_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_backend, "_installed", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="CUDA is available"):
        cpu_backend.install()
