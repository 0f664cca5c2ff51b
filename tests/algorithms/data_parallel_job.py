"""One rank of a data-parallel group over gloo: python data_parallel_job.py RANK WORLD FOLDER.

Computes what `test_data_parallel.py` compares on this rank's uneven share of one fixed batch and writes
`FOLDER/<rank>.json`. In the test process the same `measure` runs on the whole batch without a group.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from pyrl.algorithms.aggregate import global_token_count, token_mean
from pyrl.algorithms.group_moments import group_moments
from pyrl.algorithms.metrics import global_sums, token_statistics
from pyrl.algorithms.order_statistics import kth_largest
from pyrl.algorithms.policy_loss import policy_loss
from pyrl.algorithms.quadrants import covariance_quadrants
from pyrl.algorithms.selection import covariance_statistics, select_tokens, selection_seed, token_covariance
from pyrl.config import ClipCov, KLCov
from pyrl.data.packing import pack
from pyrl.types import PackedBatch, Sequence, TokenScores

LOSSES = {
    "kl_cov": KLCov(name="kl_cov", kl_cov_ratio=0.2),
    "clip_cov": ClipCov(name="clip_cov", clip_cov_ratio=0.1, clip_cov_lb=0.2, clip_cov_ub=4.0),
}
RANKS = [1, 2, 17, 100]


def make_shards(world: int) -> list[list[PackedBatch]]:
    """24 responses of different lengths in packed micro-batches, dealt unevenly; with world 3 the last rank has only
    padding. What a token holds depends on the token alone."""
    g = torch.Generator().manual_seed(3)
    sequences = []
    for i in range(24):
        prompt, response = (int(n) for n in torch.randint(2, 12, (2,), generator=g))
        logprobs = tuple((-torch.empty(response).exponential_(generator=g)).tolist())
        advantage = float(torch.randn((), generator=g)) * 2
        sequences.append(Sequence(i, (1,) * prompt, (2,) * response, advantage, logprobs))
    cuts = {1: [(0, 24)], 3: [(0, 11), (11, 24), (24, 24)]}[world]
    return [
        [pack(sequences[start : (start + end) // 2]), pack(sequences[(start + end) // 2 : end], pad_multiple=8)]
        for start, end in cuts
    ]


def scores_of(batch: PackedBatch) -> TokenScores:
    """Learner log-probs and entropy made from the token's uid."""
    noise = torch.sin(batch.token_uids.double() % 1009).float()
    zero = ~batch.response_mask
    return TokenScores(
        logprobs=(batch.rollout_logprobs + 0.1 * noise).masked_fill(zero, 0.0),
        entropy=(1.5 + noise).masked_fill(zero, 0.0),
    )


def measure(batches: list[PackedBatch], group: dist.ProcessGroup | None) -> dict:
    """Everything global about the batch, and this rank's selected uids and loss parts."""
    scores = [scores_of(batch) for batch in batches]
    logprobs, old, advantages, mask, uids = (
        torch.cat(parts)
        for parts in zip(
            *((s.logprobs, b.rollout_logprobs, b.advantages, b.response_mask, b.token_uids)
              for b, s in zip(batches, scores, strict=True)), strict=True,
        )
    )  # fmt: skip
    tokens = global_token_count([b.response_mask for b in batches], group)
    found = {"tokens": tokens, "statistics": token_statistics(batches, scores, group=group).metrics()}
    found["kth"] = [(k.value, k.above) for k in kth_largest(logprobs[mask], RANKS, group=group)]
    moments = group_moments(batches, scores, scores, torch.arange(24) // 4, 6, dp_group=group)  # cut by the ranks
    found["moments"] = [level.sums.flatten().tolist() for level in moments]
    for name, loss in LOSSES.items():
        cov = token_covariance(logprobs, advantages, mask, loss=loss, group=group)
        selected = select_tokens(
            loss, cov, logprobs, old, advantages, mask, uids, seed=selection_seed(5, 2, 1), group=group
        )
        parts = [
            token_mean(policy_loss(s.logprobs, b.rollout_logprobs, b.advantages, b.response_mask, chosen, loss)[0],
                       b.response_mask, tokens)
            for b, s, chosen in zip(batches, scores, selected.split([len(b.tokens) for b in batches]), strict=True)
        ]  # fmt: skip
        found[name] = {
            "uids": sorted(uids[selected].tolist()),
            "loss": global_sums({"loss": torch.stack(parts).double().sum()}, group)["loss"],
            "covariance": covariance_statistics(cov, mask, group=group).metrics(),
            "quadrants": covariance_quadrants(cov, advantages, mask, group=group),
        }
    return found


def main(rank: int, world: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    found = measure(make_shards(world)[rank], dist.group.WORLD)
    try:
        global_sums({"a": 1.0, "b" if rank else "c": 2.0}, dist.group.WORLD)
    except RuntimeError as error:
        found["other_names"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
