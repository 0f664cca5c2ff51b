"""Full Hugging Face tensors out of a sharded Megatron model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist

from pyrl.weights.families import ModelShape, Placed, placed_rules


def iter_hf_weights(
    model: torch.nn.Module,
    shape: ModelShape,
    *,
    tp_group: dist.ProcessGroup | None = None,
    pp_group: dist.ProcessGroup | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (Hugging Face name, full tensor on the model's device) in the order of `families.hf_metadata`.

    `model` is the unwrapped GPTModel. Every rank of the replica must exhaust the iterator in lockstep: tensor-parallel
    parts are gathered, and the stage that owns a tensor broadcasts it. Vocabulary padding is cut off. A yielded tensor
    may share memory with the model: copy it to keep it past the next update.
    """
    parameters = dict(model.named_parameters())
    tp_size = tp_group.size() if tp_group is not None else 1
    pp_size = pp_group.size() if pp_group is not None else 1
    stage = pp_group.rank() if pp_group is not None else 0
    reference = next(iter(parameters.values()))
    for placed in placed_rules(shape, pp_size):
        if stage == placed.stage:
            full = _merge(placed, parameters[placed.name].detach(), shape, tp_group if tp_size > 1 else None)
        else:
            full = [reference.new_empty(size, requires_grad=False) for size in placed.rule.hf_shapes(shape)]
        for name, tensor in zip(placed.rule.hf, full, strict=True):
            if pp_size > 1:
                tensor = tensor.contiguous()
                dist.broadcast(tensor, group=pp_group, group_src=placed.stage)
            yield name, tensor


def _merge(
    placed: Placed, part: torch.Tensor, shape: ModelShape, tp_group: dist.ProcessGroup | None
) -> list[torch.Tensor]:
    """The Hugging Face tensors of one parameter, from the parts of every tensor-parallel rank."""
    layout = placed.rule.layout
    if tp_group is None or layout.partition_dim is None:
        return layout.merge([part], shape)
    parts = [torch.empty_like(part) for _ in range(tp_group.size())]
    dist.all_gather(parts, part.contiguous(), group=tp_group)
    return layout.merge(parts, shape)
