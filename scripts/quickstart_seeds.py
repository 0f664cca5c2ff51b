"""Run the quickstart on several seeds and write the table of docs/results/quickstart.md.

    python scripts/quickstart_seeds.py --seeds 0 1 2 3 4 --runs runs/seeds --table docs/results/quickstart_seeds.md

A seed whose report is complete is not run again, so the command continues where it was interrupted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from pyrl.analysis.records import RunRecords, load_run

METHODS = ("grpo", "kl_cov")


def ensure_run(folder: Path, seed: int) -> None:
    """Run one seed unless it is complete; its wall time is kept beside it."""
    if (folder / "report.html").exists():
        return
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pyrl", "quickstart", "--folder", str(folder), f"seed={seed}"], check=True)
    (folder / "seconds.txt").write_text(f"{time.perf_counter() - started:.0f}\n")


def held_out(run: RunRecords) -> tuple[float, float]:
    """Reward on held-out prompts before the first and after the last step."""
    return run.start("validation_reward_mean", 1), run.end("validation_reward_mean", 1)


def row(folder: Path, seed: int) -> tuple[str, bool]:
    """One line of the table, and whether the seed meets every aim."""
    cells, met = [str(seed)], True
    runs = {method: load_run(folder / method) for method in METHODS}
    for run in runs.values():
        before, after = run.start("reward_mean"), run.end("reward_mean")
        first, last = held_out(run)
        cells += [f"{before:.3f} -> {after:.3f}", f"{first:.3f} -> {last:.3f}", f"{run.end('entropy'):.3f}"]
        met &= after >= 2 * before and last >= 2 * first
    entropy = runs["kl_cov"].end("entropy") / runs["grpo"].end("entropy")
    reward = runs["kl_cov"].end("reward_mean") / runs["grpo"].end("reward_mean")
    met &= entropy >= 2 and reward >= 0.9
    cells += [f"{entropy:.1f}", f"{reward:.2f}", (folder / "seconds.txt").read_text().strip(), "yes" if met else "no"]
    return "| " + " | ".join(cells) + " |", met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--table", type=Path, required=True)
    options = parser.parse_args()
    columns = ["seed"]
    columns += [f"{m} {c}" for m in METHODS for c in ("reward", "held-out reward", "final entropy")]
    columns += ["entropy ratio", "reward ratio", "seconds", "all aims met"]
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join(["---"] * len(columns)) + " |"]
    for seed in options.seeds:
        folder = options.runs / f"seed{seed}"
        ensure_run(folder, seed)
        lines.append(row(folder, seed)[0])
        options.table.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
