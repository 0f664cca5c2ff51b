"""The engine class behind `pyrl.weights.shm_engine`, imported only where vLLM builds it (each worker process)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """The files carry everything: nothing to agree on."""


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """One chunk of an update."""

    path: str
    """A safetensors file on this machine; it may be unlinked as soon as the call has returned."""
    names: list[str]
    """What the file must hold, Hugging Face names, in loading order."""
    last: bool
    """Whether the update is complete with it."""


class ShmWeightTransferEngine(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """Loads full Hugging Face tensors from files in shared memory; every worker takes its own shard of them."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        """Nothing to connect."""

    def start_weight_update(self) -> None:
        self._expected = {name for name, _ in self.model.named_parameters()}
        self._loaded: set[str] = set()
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict) -> None:
        # The base class also synchronises an accelerator; a CPU worker has none.
        info = self.parse_update_info(update_info)
        try:
            self.receive_weights(info)
            if info.last:
                self._check_complete()
        except BaseException:
            # The worker calls this update off; half-loaded layers must not wait for their rest in the next one.
            finalize_layerwise_reload(self.model, self.model_config)
            raise

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        self._loaded |= set(self.model.load_weights(_read(update_info)))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        self._repack_tied_head()

    def _check_complete(self) -> None:
        missing = sorted(self._expected - self._loaded)
        if missing:
            raise RuntimeError(
                f"weight update is incomplete: {len(missing)} of {len(self._expected)} parameters received nothing, "
                f"first {missing[0]!r}; the sender must yield every tensor of the model"
            )

    def _repack_tied_head(self) -> None:
        """Pack the output layer anew where it shares the embedding's weight.

        Nothing is loaded under its own name then, so the reload leaves alone the copy that the CPU backend had packed
        of the old weight, and generation would go on with it. A head with a weight of its own was loaded and packed.
        """
        layers = list(self.model.modules())
        heads = [layer for layer in layers if isinstance(layer, ParallelLMHead)]
        embeddings = [e for e in layers if isinstance(e, VocabParallelEmbedding) and not isinstance(e, ParallelLMHead)]
        for head in heads:
            if any(head.weight is embedding.weight for embedding in embeddings):
                head.quant_method.process_weights_after_loading(head)

    def shutdown(self) -> None:
        """Holds no resource between calls."""


def _read(update_info: ShmUpdateInfo) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(update_info.path, framework="pt", device="cpu") as tensors:
        held, wanted = set(tensors.keys()), set(update_info.names)
        if held != wanted:
            raise ValueError(f"{update_info.path} and its description differ in {sorted(held ^ wanted)[:4]}")
        for name in update_info.names:
            # Layerwise reload keeps what it is given until its layer is complete, which may be in a later chunk.
            yield name, tensors.get_tensor(name)
