"""vLLM's side of the `shm` transport: a weight-transfer engine that reads safetensors from shared memory.

vLLM calls `register` in every one of its processes (entry point `pyrl_shm` of the group `vllm.general_plugins`), so
this file imports nothing of pyrl and nothing heavy until the engine is built.

The CPU backend packs linear weights and drops the originals, so an update runs inside vLLM's layerwise reload, as in
vLLM's own `ipc` engine. That reload keeps the old values of a layer that received nothing and only logs it; here a
parameter that no tensor reached is an error.
"""

from __future__ import annotations

BACKEND = "pyrl_shm"
"""Name under which the engine is registered: `--weight-transfer-config '{"backend": "pyrl_shm"}'`."""


def register() -> None:
    """Register the engine with vLLM's factory. Safe to call more than once in a process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "pyrl.weights.shm_engine_impl", "ShmWeightTransferEngine")
