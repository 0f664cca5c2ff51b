"""Operators over the vocabulary and over the batch: compiled, differentiable, exact for any parallel layout."""

from pyrl.ops._library import build_info
from pyrl.ops.covariance import token_covariance
from pyrl.ops.linear_logprob_entropy import linear_logprob_entropy
from pyrl.ops.logprob_entropy import logprob_entropy
from pyrl.ops.policy_loss import policy_loss
from pyrl.ops.selection import select_band, select_top

__all__ = [
    "build_info",
    "linear_logprob_entropy",
    "logprob_entropy",
    "policy_loss",
    "select_band",
    "select_top",
    "token_covariance",
]
