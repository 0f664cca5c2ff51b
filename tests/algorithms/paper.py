"""arXiv 2505.22617, equations 10 to 14, written out token by token in float64: what the product is compared with.

A batch is four lists of equal length over all tokens: log-probs, old log-probs, advantages, mask. `logprobs` holds
float64 scalar tensors so that autograd differentiates exactly what the equations say.
"""

import torch


def covariance(logprobs, advantages, mask):
    """Eq. 10: Cov(y_i) = (log pi(y_i) - mean log pi)(A(y_i) - mean A) over the valid tokens; None where masked."""
    valid = [i for i, m in enumerate(mask) if m]
    if not valid:
        return [None] * len(mask)
    mean_logprob = sum(logprobs[i].item() for i in valid) / len(valid)
    mean_advantage = sum(advantages[i] for i in valid) / len(valid)
    return [
        (logprobs[i].item() - mean_logprob) * (advantages[i] - mean_advantage) if m else None
        for i, m in enumerate(mask)
    ]


def selected_count(ratio, mask):
    """Eq. 13: the tokens of rank <= k N, at least one; 0 is off."""
    n = sum(mask)
    return max(1, int(ratio * n)) if ratio and n else 0


def clip_cov_candidates(cov, logprobs, old, advantages, mask, *, lower, upper, low, high):
    """Eq. 11 and listing 1: inside the open band, and not already clipped by PPO."""
    inside = set()
    for i, m in enumerate(mask):
        if not m:
            continue
        ratio = (logprobs[i] - old[i]).exp().item()
        clipped = min(max(ratio, 1 - low), 1 + high)
        if not -clipped * advantages[i] > -ratio * advantages[i] and lower < cov[i] < upper:
            inside.add(i)
    return inside


def kl_cov_loss(logprobs, old, advantages, mask, chosen, *, coef):
    """Eq. 14: -(1/N) sum_i [r_i A_i - coef |log pi_i - log pi_old,i| for the chosen, r_i A_i for the others]."""
    total = torch.zeros((), dtype=torch.float64)
    for i, m in enumerate(mask):
        if m:
            d = logprobs[i] - old[i]
            total = total - d.exp() * advantages[i] + (coef * d.abs() if i in chosen else 0.0)
    return total / sum(mask)


def clip_cov_loss(logprobs, old, advantages, mask, chosen, *, low, high):
    """Eq. 12 with listing 1's clip: 0 for the chosen, max(-r A, -clip(r) A) for the others; N counts all of them."""
    total = torch.zeros((), dtype=torch.float64)
    for i, m in enumerate(mask):
        if m and i not in chosen:
            ratio = (logprobs[i] - old[i]).exp()
            clipped = ratio.clamp(1 - low, 1 + high)
            total = total + torch.maximum(-ratio * advantages[i], -clipped * advantages[i])
    return total / sum(mask)
