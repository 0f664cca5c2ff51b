"""Which tokens make the covariance: its share by quadrant of (probability, advantage)."""

from __future__ import annotations

import torch
import torch.distributed as dist

from pyrl.algorithms.metrics import global_sums
from pyrl.telemetry.names import COVARIANCE_QUADRANTS, covariance_quadrant_name


def covariance_quadrants(
    covariance: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, *, group: dist.ProcessGroup | None
) -> dict[str, float | None]:
    """Fields of the step record: the share of the sum of |cov| in each quadrant; they add up to 1. Collective.

    High and low are above and below the mean over the valid tokens of the group, of the log-prob and of the advantage,
    as in the covariance itself (arXiv 2505.22617, eq. 10). So covariance is positive, and takes entropy away, where the
    two agree, and negative where they differ. None where no token has a covariance other than 0.

    `covariance` from `pyrl.ops.token_covariance`, `advantages`: fp32 [T], `mask`: bool [T].
    """
    values, advantages = covariance[mask].double(), advantages[mask].double()
    means = {"advantages": advantages.sum(), "tokens": float(values.numel())}
    sums = global_sums(means, group, device=values.device)
    above = advantages > sums["advantages"] / max(sums["tokens"], 1)
    likely = (values > 0) == above  # the sign of a product and of one factor give that of the other
    of_quadrant = dict(
        zip(COVARIANCE_QUADRANTS, [likely & above, likely & ~above, ~likely & above, ~likely & ~above], strict=True)
    )
    sums = global_sums(
        {quadrant: values[inside].abs().sum() for quadrant, inside in of_quadrant.items()}, group, device=values.device
    )
    total = sum(sums[quadrant] for quadrant in COVARIANCE_QUADRANTS)
    return {covariance_quadrant_name(q): sums[q] / total if total else None for q in COVARIANCE_QUADRANTS}
