"""Operators over the vocabulary and over the batch: compiled, differentiable, exact for any parallel layout."""

from pyrl.ops._library import build_info
from pyrl.ops.covariance import token_covariance
from pyrl.ops.logprob_entropy import logprob_entropy
from pyrl.ops.selection import select_band, select_top

__all__ = ["build_info", "logprob_entropy", "select_band", "select_top", "token_covariance"]
