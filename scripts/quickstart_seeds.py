"""The table of docs/results/quickstart.md, from what a study of configs/study/paper.yaml wrote.

    python scripts/quickstart_seeds.py docs/results/entropy [ARM ...]

Each arm against GRPO with the same seed, start and held-out questions. Intervals are by question, 95%; the claim wants
the lower end of pass@1's difference above 0.03, that of pass@16's above 0.05, and four times the entropy.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyrl.analysis.records import END_STEPS
from pyrl.evaluation.metrics import pass_at_k_of_counts
from pyrl.evaluation.statistics import Comparison, compare_paired
from pyrl.quickstart.summary import gates_found

BASELINE, K = "grpo", 16
LEAST_PASS_1, LEAST_PASS_K, LEAST_RATIO = 0.03, 0.05, 4.0
HEADINGS = ("seed", "pass@1", "GRPO", "difference", f"pass@{K}", "GRPO", "difference", "entropy", "GRPO", "times",
            "gates", "GRPO", "claim")  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What one run ended with."""

    right: np.ndarray
    judged: np.ndarray
    entropy: float
    gates: int

    def pass_at_k(self, k: int) -> np.ndarray:
        return pass_at_k_of_counts(self.right, self.judged, k)


def read(study: Path, arm: str, seed: int) -> Run:
    questions = read_table(study / "held_out" / f"seed_{seed}.csv")
    right, judged = (np.array([int(row[f"{arm} {what}"]) for row in questions]) for what in ("right", "judged"))
    entropy = [float(row["entropy"]) for row in read_table(study / "curves" / f"{arm}-seed_{seed}.csv")[1:]]
    reasons = [{"source": row["source"], "reasons": counts(row[f"{arm} reasons"])} for row in questions]
    return Run(right, judged, float(np.mean(entropy[-END_STEPS:])), sum(gates_found(reasons).values()))


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def counts(text: str) -> dict[str, int]:
    """Of `equal:3 gate:61`."""
    return {reason: int(count) for reason, count in (part.rsplit(":", 1) for part in text.split())}


def cell(pair: Comparison) -> str:
    return f"{pair.difference:+.3f} ({pair.low:+.3f} to {pair.high:+.3f})"


def row(seed: int, own: Run, baseline: Run) -> tuple[list[str], bool]:
    """Its cells, and whether it meets the claim."""
    cells, pairs = [str(seed)], []
    for k in (1, K):
        one, two = own.pass_at_k(k), baseline.pass_at_k(k)
        pairs.append(compare_paired(two, one))
        cells += [f"{one.mean():.3f}", f"{two.mean():.3f}", cell(pairs[-1])]
    ratio = own.entropy / baseline.entropy
    met = pairs[0].low > LEAST_PASS_1 and pairs[1].low > LEAST_PASS_K and ratio >= LEAST_RATIO
    cells += [f"{own.entropy:.3f}", f"{baseline.entropy:.3f}", f"{ratio:.1f}", str(own.gates), str(baseline.gates)]
    return [*cells, "yes" if met else "no"], met


def main() -> None:
    study, *arms = (Path(sys.argv[1]), *sys.argv[2:])
    for arm in arms or ["clip_cov", "clip_cov_random", "kl_cov", "kl_cov_random"]:
        seeds = sorted(int(path.stem.rpartition("_")[2]) for path in (study / "curves").glob(f"{arm}-seed_*.csv"))
        rows = [row(seed, read(study, arm, seed), read(study, BASELINE, seed)) for seed in seeds]
        print(f"\n{arm}: {sum(met for _, met in rows)} of {len(rows)} seeds meet the claim\n")
        print(f"| {' | '.join(HEADINGS)} |\n|{' --- |' * len(HEADINGS)}")
        for cells, _ in rows:
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
