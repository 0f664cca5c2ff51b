"""Sums and order statistics over all ranks, for the step record."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist

from pyrl.algorithms.order_statistics import kth_largest
from pyrl.types import UID_POSITION_BITS, PackedBatch, TokenScores

GAP_QUANTILE = 0.99


def global_sums(
    sums: Mapping[str, torch.Tensor | float], group: dist.ProcessGroup | None, *, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Each value summed over `group` in fp64, by one all-reduce on `device`. `group` None: as they are. Collective.

    Raises RuntimeError when the ranks do not pass the same names.
    """
    names = sorted(sums)
    checksum = zlib.crc32("\n".join(names).encode())
    values = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)
    for i, name in enumerate(names):
        values[i] = sums[name]
    values[-1] = checksum
    if group is not None:
        dist.all_reduce(values, group=group)
        if int(values[-1]) != checksum * dist.get_world_size(group):
            raise RuntimeError(f"ranks sum different metrics; this one has {', '.join(names)}")
    return dict(zip(names, values.tolist()[:-1], strict=True))


def add_up(parts: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Entry-wise sum over the micro-batches of this rank, in order. Raises ValueError when their names differ."""
    total: dict[str, torch.Tensor] = {}
    for part in parts:
        if total and part.keys() != total.keys():
            raise ValueError(f"micro-batches report different metrics: {sorted(part)} and {sorted(total)}")
        total = {name: total[name] + value if total else value for name, value in part.items()}
    return total


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """Of the sequences that are trained on, under the policy that generated them; None where there is no token."""

    response_tokens: int
    entropy: float | None
    """Full-vocabulary entropy, temperature 1, nats: mean over tokens."""
    entropy_response_mean: float | None
    """The paper's eq. 5: mean over a response's tokens, then over responses."""
    logprob_gap_mean: float | None
    """|rollout - learner log-prob| in nats; None when the rollout gave no log-probs."""
    logprob_gap_p99: float | None
    """Smallest gap that at least 99% of the tokens do not exceed, exact."""
    logprob_gap_max: float | None

    def metrics(self) -> dict[str, float | None]:
        """As fields of the step record."""
        return asdict(self)


def token_statistics(
    batches: list[PackedBatch], scores: list[TokenScores], *, group: dist.ProcessGroup | None
) -> TokenStatistics:
    """Entropy and rollout-learner gap over this rank's micro-batches and the data-parallel `group`. Collective.

    Raises ValueError when entropy or a log-prob of a response token is not finite, on every rank.
    """
    mask = torch.cat([b.response_mask for b in batches])
    uids = torch.cat([b.token_uids for b in batches])[mask]
    entropy = torch.cat([s.entropy for s in scores]).detach()[mask].double()
    gap = _gap(batches, scores)[mask]
    per_response, lengths = _response_sums(entropy, uids)
    sums = global_sums(
        {
            "tokens": mask.sum(),
            "entropy": entropy.sum(),
            "responses": lengths.numel(),
            "response_means": (per_response / lengths).sum(),
            "gap": gap.double().sum(),
            "ranks_without_rollout_logprobs": float(any(b.rollout_logprobs is None for b in batches)),
        },
        group,
        device=mask.device,
    )
    broken = [name for name in ("entropy", "gap") if not math.isfinite(sums[name])]
    if broken:
        raise ValueError(f"{' and '.join(broken)} of response tokens: not finite, somewhere in the data-parallel group")
    tokens = int(sums["tokens"])
    p99 = maximum = None
    has_gap = tokens > 0 and not sums["ranks_without_rollout_logprobs"]
    if has_gap:
        p99_rank = tokens - math.ceil(GAP_QUANTILE * tokens) + 1
        p99, maximum = (k.value for k in kth_largest(gap, [p99_rank, 1], group=group))
    return TokenStatistics(
        response_tokens=tokens,
        entropy=sums["entropy"] / tokens if tokens else None,
        entropy_response_mean=sums["response_means"] / sums["responses"] if tokens else None,
        logprob_gap_mean=sums["gap"] / tokens if has_gap else None,
        logprob_gap_p99=p99,
        logprob_gap_max=maximum,
    )


def _gap(batches: list[PackedBatch], scores: list[TokenScores]) -> torch.Tensor:
    """|rollout - learner log-prob|, fp32 over the concatenated batches; 0 where a batch has no rollout log-probs."""
    parts = [
        torch.zeros_like(s.logprobs) if b.rollout_logprobs is None else (b.rollout_logprobs - s.logprobs).abs()
        for b, s in zip(batches, scores, strict=True)
    ]
    return torch.cat(parts).detach().float()


def _response_sums(values: torch.Tensor, uids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum and number of tokens of each response."""
    _, response, lengths = (uids >> UID_POSITION_BITS).unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(lengths.numel(), dtype=values.dtype, device=values.device).index_add_(0, response, values)
    return sums, lengths
