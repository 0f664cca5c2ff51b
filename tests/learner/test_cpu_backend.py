"""Megatron's CUDA calls land on the CPU; everybody else's still fail."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from pyrl.learner import cpu_backend

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="maps CUDA to the CPU where there is no CUDA")


@pytest.fixture(scope="module")
def megatron() -> ModuleType:
    """A module that counts as Megatron's."""
    cpu_backend.install()
    cpu_backend.install()  # a second call changes nothing
    module = ModuleType("megatron.core.example")
    code = """
import torch
def zeros(): return torch.zeros(2, device="cuda")
def like(x): return torch.empty_like(x, device=torch.device("cuda", 0))
def moved(x): return x.to("cuda"), x.to(device="cuda"), x.cuda(), x.to("cuda", torch.float64)
def type_name(x): return x.type()
def converted(x): return x.type(torch.float64)
def device(): return torch.empty(1, device=torch.cuda.current_device())
def seeded():
    torch.cuda.manual_seed(3)
    state = torch.cuda.get_rng_state()
    first = torch.rand(2)
    torch.cuda.set_rng_state(state)
    return first, torch.rand(2)
def streams():
    torch.cuda.default_stream().wait_stream(torch.cuda.current_stream())
    torch.cuda.synchronize()
"""
    exec(code, module.__dict__)
    return module


def test_megatron_gets_the_cpu(megatron: ModuleType) -> None:
    x = torch.ones(2)
    assert megatron.zeros().device.type == "cpu"
    assert megatron.like(x).device.type == "cpu"
    assert [t.device.type for t in megatron.moved(x)] == ["cpu"] * 4
    assert megatron.moved(x)[3].dtype == torch.float64
    assert megatron.device().device.type == "cpu"
    assert megatron.type_name(x) == "torch.cuda.FloatTensor"
    assert megatron.type_name(x.bfloat16()) == "torch.cuda.BFloat16Tensor"
    assert megatron.converted(x).dtype == torch.float64
    first, second = megatron.seeded()
    assert torch.equal(first, second)
    megatron.streams()


def test_other_callers_get_torch(megatron: ModuleType) -> None:
    x = torch.ones(2)
    assert x.type() == "torch.FloatTensor"
    assert x.to(torch.float64).dtype == torch.float64
    for call in (lambda: torch.zeros(1, device="cuda"), lambda: x.to("cuda"), torch.cuda.current_device):
        with pytest.raises((AssertionError, RuntimeError)):
            call()
    with pytest.raises((AssertionError, RuntimeError)):
        x.cuda()


def test_it_refuses_a_machine_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_backend, "_installed", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="CUDA is available"):
        cpu_backend.install()
