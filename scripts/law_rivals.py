"""What `pyrl analyze` says of curves whose reward is known to follow the law, or the step alone.

    python scripts/law_rivals.py verdicts [CURVES]          # share called "follows", without and with the rivals
    python scripts/law_rivals.py bands [CURVES] [LOG...]    # share of later steps inside the early prediction's band
    python scripts/law_rivals.py times                      # what a fit, the rivals and the notice cost

Prints the tables of docs/analysis.md. Entropy collapses as in GRPO, from 0.7 to 0.05 nats; reward rises by 0.29 with
noise of 0.02.
"""

from __future__ import annotations

import sys
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np
from law_coverage import NOISE, NOISES, A, B

from pyrl.analysis.early_prediction import predict_from_start
from pyrl.analysis.entropy_law import fit_entropy_law
from pyrl.analysis.law_checks import check_law
from pyrl.analysis.regressors import compare_regressors
from pyrl.analysis.spent_entropy import spent_entropy_notice
from pyrl.analysis.training_logs import read_curve

RISE = A * (np.exp(0.7) - np.exp(0.05))
TRENDS = {
    "line": lambda t, n: t,
    "square root": lambda t, n: np.sqrt(t),
    "logarithm": lambda t, n: np.log1p(n * t) / np.log1p(n),
    "1 - exp(-3 t)": lambda t, n: 1 - np.exp(-3 * t),
    "1 - exp(-8 t), the entropy's own shape": lambda t, n: 1 - np.exp(-8 * t),
}
STEPS = (15, 36, 100, 200)
BEFORE = ("follows", "trend in time", "another form")
"""Verdicts that were "follows" when there were no rivals."""


def entropy_curve(n: int, rng: np.random.Generator) -> np.ndarray:
    return (0.05 + 0.65 * np.exp(-np.arange(n) / (n / 8))) * (1 + 0.02 * rng.standard_normal(n))


def verdict_shares(reward_of, noise, n: int, curves: int) -> tuple[float, float]:
    """(share that followed by slope and bend alone, share that follows)"""
    rng, verdicts = np.random.default_rng(n), []
    for _ in range(curves):
        h = entropy_curve(n, rng)
        y = reward_of(h) + NOISE * noise(n, h, rng)
        verdicts.append(check_law(fit_entropy_law(h, y), h, y).verdict)
    return sum(v in BEFORE for v in verdicts) / curves, verdicts.count("follows") / curves


def print_verdicts(curves: int) -> None:
    print("| reward | noise |", " | ".join(f"{n} steps" for n in STEPS), "|")
    print("| --- | --- |", " | ".join("---" for _ in STEPS), "|")
    forms = {"the law": lambda h: B - A * np.exp(h)}
    for name, trend in TRENDS.items():
        forms[name] = lambda h, trend=trend: 0.2 + RISE * trend(np.arange(h.size) / h.size, h.size)
    for name, reward_of in forms.items():
        for noise in ("white", "AR(1), 0.8"):
            cells = [verdict_shares(reward_of, NOISES[noise], n, curves) for n in STEPS]
            print(f"| {name} | {noise} |", " | ".join(f"{a:.0%}, {b:.0%}" for a, b in cells), "|", flush=True)


def print_bands(curves: int, logs: list[str]) -> None:
    print("| curve | steps | inside the band | inside the law's own |\n| --- | --- | --- | --- |")
    for name in list(NOISES)[:3]:
        for n in (100, 240, 500):
            rng, found = np.random.default_rng(n), []
            for _ in range(curves):
                h = entropy_curve(n, rng)
                early = predict_from_start(np.arange(n), h, B - A * np.exp(h) + NOISE * NOISES[name](n, h, rng))
                found.append((early.band_coverage, early.law_band_coverage))
            band, own = np.mean(found, axis=0)
            print(f"| the law, {name} | {n} | {band:.1%} | {own:.1%} |", flush=True)
    for log in logs:
        curve = read_curve(Path(log))
        early = predict_from_start(curve.steps, curve.entropy, curve.reward)
        print(f"| {log} | {curve.steps.size} | {early.band_coverage:.1%} | {early.law_band_coverage:.1%} |", flush=True)


def milliseconds(call: Callable[[], object]) -> float:
    return 1e3 * min(timeit.repeat(call, number=1, repeat=7))


def costs(n: int) -> tuple[float, float, float]:
    rng = np.random.default_rng(n)
    h = entropy_curve(n, rng)
    y, steps = B - A * np.exp(h) + NOISE * rng.standard_normal(n), np.arange(n)
    return (
        milliseconds(lambda: fit_entropy_law(h, y)),
        milliseconds(lambda: compare_regressors(steps, h, y)),
        milliseconds(lambda: spent_entropy_notice(steps, h, y)),
    )


def print_times() -> None:
    print("| steps | fit | rivals | notice |\n| --- | --- | --- | --- |")
    for n in (200, 1000, 5000):
        print(f"| {n} |", " | ".join(f"{cost:.0f} ms" for cost in costs(n)), "|", flush=True)


def main() -> None:
    what, curves = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 100
    if what == "verdicts":
        print_verdicts(curves)
    elif what == "bands":
        print_bands(curves, sys.argv[3:])
    else:
        print_times()


if __name__ == "__main__":
    main()
