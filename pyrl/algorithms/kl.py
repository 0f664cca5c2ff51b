"""Estimates of KL(pi || pi_ref) from sampled tokens, as a loss term. Chosen by `algorithm.kl_loss_type`.

d = log pi - log pi_ref of the sampled token (http://joschu.net/blog/kl-approx.html, with r = pi_ref / pi = e^-d). What
a loss does is its gradient. On policy, that of k1 is noise of mean 0, that of k2 is in the mean the gradient of
KL(pi || pi_ref), and that of k3 the gradient of KL(pi_ref || pi); the last two agree to first order in d.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def k1(d: torch.Tensor) -> torch.Tensor:
    """d: unbiased, either sign. Gradient: 1 a token."""
    return d


def k2(d: torch.Tensor) -> torch.Tensor:
    """d^2 / 2: biased, small variance. Gradient: d."""
    return d.square() / 2


def k3(d: torch.Tensor) -> torch.Tensor:
    """e^-d - 1 + d: unbiased, never negative. Gradient: 1 - e^-d. GRPO's (arXiv 2402.03300 eq. 4)."""
    return torch.expm1(-d) + d


KL_ESTIMATORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""By `algorithm.kl_loss_type`."""
