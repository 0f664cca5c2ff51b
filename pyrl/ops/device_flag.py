"""Value errors on CUDA: where an op would have to wait for the device to raise, it sets a bit there instead.

The trainer reads the flag once per update, before the optimizer step. One int64 per device, made on first use and never
moved, so that a CUDA graph can hold the op: run the op once before capturing it.
"""

from __future__ import annotations

import enum

import torch


class ValueErrors(enum.IntFlag):
    """What a bit says. Kernels know the first two numbers too: csrc/selection/key.h."""

    SAME_UID = 1
    TOO_MANY_TOKENS = 2
    BAD_ROW = 4


_MESSAGES = {
    ValueErrors.SAME_UID: "token_uids: got tokens with the same uid, wanted uids that are unique over the group",
    ValueErrors.TOO_MANY_TOKENS: "mask: got 2^31 valid tokens or more over the group, wanted fewer",
    ValueErrors.BAD_ROW: "logits, labels, temperature: got a row whose logits hold NaN, +inf or nothing but -inf, "
    "whose label is neither a token of the vocabulary nor -100, or whose temperature lies outside [1e-6, 1e6]",
}

_FLAGS: dict[torch.device, torch.Tensor] = {}


def device_flag(device: torch.device) -> torch.Tensor:
    """int64 [1]: the `ValueErrors` seen on `device` since it was last read; ops add to it with `bitwise_or_`."""
    if device not in _FLAGS:
        _FLAGS[device] = torch.zeros(1, dtype=torch.int64, device=device)
    return _FLAGS[device]


def take_errors(device: torch.device) -> list[str]:
    """What the flag of `device` says, argument by argument; clears it. Waits for the device."""
    if device not in _FLAGS:
        return []
    seen = ValueErrors(int(_FLAGS[device]))
    _FLAGS[device].zero_()
    return [message for bit, message in _MESSAGES.items() if bit in seen]
