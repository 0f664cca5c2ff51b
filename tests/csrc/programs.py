"""The programs of test_emulation.py: one per kernel source, each with its planted defects in a module of its own."""

from __future__ import annotations

from tests.csrc import counter, logprob_entropy, policy_loss, selection, token_covariance

PROGRAMS = tuple(
    module.PROGRAM for module in (counter, logprob_entropy, policy_loss, selection, token_covariance)
)
