"""How many of the tokens that Clip-Cov or KL-Cov choose depend on `cov_scope` and `cov_logprobs`.

    python scripts/compare_selection.py RUN.yaml [key=value ...] --folder FOLDER

A real run of `pyrl train` with scope `mini_batch` and the current log-probs. Before each update the same tokens are
also ranked by the other scopes and log-probs. Printed: the mean share of the update's chosen tokens that the other rule
leaves out, first updates of a rollout (where old and current are equal) apart from the others.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import torch

from pyrl import trainer
from pyrl.algorithms.selection import select_tokens, selection_seed, token_covariance
from pyrl.config import load_config
from pyrl.stages.improve import PolicyImprover
from pyrl.types import PackedBatch

REFERENCE = ("mini_batch", "current")
shares: dict[tuple[str, str, str], list[float]] = defaultdict(list)
"""(scope, log-probs, which updates) -> share of each update."""


class ComparingImprover(PolicyImprover):
    """Chooses as `REFERENCE` does, whatever the scope of its config, and counts what other rules leave out."""

    def _update(self, mini_batch: list[PackedBatch], index: int, step: int):
        current = [score.logprobs for score in self._learner.score(mini_batch)]
        old = [batch.old_logprobs for batch in mini_batch]
        chosen = {("rollout_batch", "old"): [batch.selected for batch in mini_batch]}
        for name, logprobs in (("current", current), ("old", old)):
            chosen["mini_batch", name] = self._choose(mini_batch, logprobs, old, step, index)
            each = zip(mini_batch, logprobs, old, strict=True)
            alone = [self._choose([batch], [values], [before], step, index) for batch, values, before in each]
            chosen["micro_batch", name] = [part for parts in alone for part in parts]
        reference = torch.cat(chosen[REFERENCE])
        for (scope, name), parts in chosen.items():
            missed = (reference & ~torch.cat(parts)).sum() / reference.sum()
            shares[scope, name, "later" if index else "first"].append(float(missed))
        for batch, part in zip(mini_batch, chosen[REFERENCE], strict=True):
            batch.selected = part
        return super()._update(mini_batch, index, step)

    def _choose(
        self, batches: list[PackedBatch], logprobs: list[torch.Tensor], old: list[torch.Tensor], step: int, index: int
    ) -> list[torch.Tensor]:
        """The tokens of `batches`, taken for the whole scope."""
        values, before = torch.cat(logprobs), torch.cat(old)
        advantages, mask, uids = (
            torch.cat([getattr(b, name) for b in batches]) for name in ("advantages", "response_mask", "token_uids")
        )
        seed, group = selection_seed(self._config.seed, step, index), self._parallel.dp_group
        covariance = token_covariance(values, advantages, mask, loss=self.loss, group=group)
        chosen = select_tokens(
            self.loss, covariance, values, before, advantages, mask, uids, seed=seed, group=group
        )
        return list(chosen.split([len(b.tokens) for b in batches]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    # With this scope every mini-batch is scored before the first update, which the comparison needs.
    config = load_config(arguments.config, [*arguments.overrides, "loss.cov_scope=rollout_batch"])
    trainer.PolicyImprover = ComparingImprover
    trainer.train(config, arguments.folder, title="comparing")
    print("| scope | log-probs | first update | later updates |\n| --- | --- | --- | --- |")
    for scope, name in sorted({key[:2] for key in shares} - {REFERENCE}):
        found = [shares[scope, name, which] for which in ("first", "later")]
        cells = [f"{fmean(each):.1%}" if each else "-" for each in found]
        print(f"| {scope} | {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
