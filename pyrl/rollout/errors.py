"""What can go wrong between a client and a vLLM server."""

from __future__ import annotations

from dataclasses import dataclass


class RolloutError(RuntimeError):
    """A server refused a request, or answered something that its API does not promise: retrying would not help."""


class PolicyVersionMismatch(RolloutError):
    """A completion holds tokens of weights other than the policy's."""


class Retryable(Exception):
    """One try of a request failed in a way that may pass."""


@dataclass(frozen=True, slots=True)
class Failure:
    """In place of an answer: why there is none."""

    reason: str
    is_lasting: bool = False
    """Whether the server is gone or silent, so that other requests would fail too."""
