"""How often the interval of a difference holds the truth where few questions differ, beside Student's own.

    python scripts/interval_coverage.py [--repeats 1500]

Prints the table of docs/evaluation.md: coverage over cases of 10 to 300 questions x 32 samples, of which a share jumps.
"""

from __future__ import annotations

import argparse
from itertools import product

import numpy as np
from scipy import stats

from pyrl.evaluation.intervals import difference_interval

QUESTIONS, SHARES, CHANCES = (10, 20, 30, 40, 100, 300), (0.01, 0.02, 0.03, 0.05, 0.1, 0.2), (0.002, 0.3)
JUMPS = (0.2, 0.4, 0.6, 1.0)
SAMPLES = 32


def covered(questions: int, share: float, jump: float, chance: float, repeats: int, seed: int) -> tuple[float, float]:
    """Of `difference_interval`, and of Student's."""
    rng = np.random.default_rng(seed)
    better = min(1.0, chance + jump)
    chances = np.where(rng.random((repeats, questions)) < share, better, chance)
    differences = (rng.binomial(SAMPLES, chances) - rng.binomial(SAMPLES, chance, chances.shape)) / SAMPLES
    truth = share * (better - chance)
    ours = [low <= truth <= high for low, high in map(difference_interval, differences)]
    half = stats.t.ppf(0.975, questions - 1) * differences.std(1, ddof=1) / questions**0.5
    return float(np.mean(ours)), float(np.mean(abs(differences.mean(1) - truth) <= half))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1500)
    repeats = parser.parse_args().repeats
    cases = list(product(QUESTIONS, SHARES, JUMPS, CHANCES))
    found = np.array([covered(*case, repeats, seed) for seed, case in enumerate(cases)])
    for name, coverage in zip(("difference_interval", "Student's"), found.T, strict=True):
        low = int((coverage < 0.93).sum())
        print(f"{name}: mean {coverage.mean():.3f}, least {coverage.min():.3f}, below 0.93 in {low} of {len(cases)}")


if __name__ == "__main__":
    main()
