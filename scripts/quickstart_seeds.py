"""The table of docs/results/quickstart.md, from the runs of `pyrl study configs/study/paper.yaml`.

    python scripts/quickstart_seeds.py runs/paper [ARM ...]

Each arm against GRPO with the same seed, start and held-out questions. Intervals are by question, 95%; the claim wants
the lower end of pass@1's difference above 0.03, that of pass@16's above 0.05, and four times the entropy.
"""

from __future__ import annotations

import sys
from operator import itemgetter
from pathlib import Path

import numpy as np

from pyrl.analysis.records import load_run
from pyrl.evaluation.held_out import last_questions
from pyrl.evaluation.metrics import pass_at_k_of_counts
from pyrl.evaluation.statistics import Comparison, compare_paired
from pyrl.quickstart.summary import gates_found

BASELINE, K = "grpo", 16
LEAST_PASS_1, LEAST_PASS_K, LEAST_RATIO = 0.03, 0.05, 4.0
HEADINGS = ("seed", "pass@1", "GRPO", "difference", f"pass@{K}", "GRPO", "difference", "entropy", "GRPO", "times",
            "gates", "GRPO", "claim")  # fmt: skip


def pass_at_k(questions: list[dict], k: int) -> np.ndarray:
    return pass_at_k_of_counts([q["right"] for q in questions], [q["samples"] - q["unjudged"] for q in questions], k)


def cell(pair: Comparison) -> str:
    return f"{pair.difference:+.3f} ({pair.low:+.3f} to {pair.high:+.3f})"


def row(seed: int, folder: Path, baseline: Path) -> tuple[list[str], bool]:
    """Its cells, and whether it meets the claim."""
    own, other = (sorted(last_questions(run), key=itemgetter("prompt_id")) for run in (folder, baseline))
    assert [q["prompt_id"] for q in own] == [q["prompt_id"] for q in other], "other held-out questions"
    cells, pairs = [str(seed)], []
    for k in (1, K):
        one, two = pass_at_k(own, k), pass_at_k(other, k)
        pairs.append(compare_paired(two, one))
        cells += [f"{one.mean():.3f}", f"{two.mean():.3f}", cell(pairs[-1])]
    entropy, of_baseline = load_run(folder).end("entropy"), load_run(baseline).end("entropy")
    ratio = entropy / of_baseline
    met = pairs[0].low > LEAST_PASS_1 and pairs[1].low > LEAST_PASS_K and ratio >= LEAST_RATIO
    gates = [str(sum(gates_found(questions).values())) for questions in (own, other)]
    return [*cells, f"{entropy:.3f}", f"{of_baseline:.3f}", f"{ratio:.1f}", *gates, "yes" if met else "no"], met


def main() -> None:
    folder, *arms = (Path(sys.argv[1]), *sys.argv[2:])
    for arm in arms or ["clip_cov", "clip_cov_random", "kl_cov", "kl_cov_random"]:
        runs = sorted((folder / "runs" / arm).glob("seed_*"), key=lambda path: int(path.name.removeprefix("seed_")))
        rows = [row(int(run.name.removeprefix("seed_")), run, folder / "runs" / BASELINE / run.name) for run in runs]
        print(f"\n{arm}: {sum(met for _, met in rows)} of {len(rows)} seeds meet the claim\n")
        print(f"| {' | '.join(HEADINGS)} |\n|{' --- |' * len(HEADINGS)}")
        for cells, _ in rows:
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
