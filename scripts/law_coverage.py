"""How often the 95% intervals of `fit_entropy_law` hold the true a and b: `python scripts/law_coverage.py [CURVES]`.

Prints the table of docs/analysis.md. Entropy collapses as in GRPO; R = -0.3 exp(H) + 0.8 with noise of 0.02.
"""

from __future__ import annotations

import sys

import numpy as np
from scipy.signal import lfilter

from pyrl.analysis import fit_entropy_law

A, B, NOISE = 0.3, 0.8, 0.02
STEPS = (36, 100, 200, 400)


def ar1(n: int, rho: float, rng: np.random.Generator) -> np.ndarray:
    return lfilter([1.0], [1.0, -rho], rng.standard_normal(n + 300) * np.sqrt(1 - rho**2))[300:]


NOISES = {
    "white": lambda n, h, rng: ar1(n, 0.0, rng),
    "AR(1), 0.8": lambda n, h, rng: ar1(n, 0.8, rng),
    "white + drift, AR(1) 0.95 of half the size": lambda n, h, rng: ar1(n, 0.0, rng) + 0.5 * ar1(n, 0.95, rng),
    "white, in proportion to entropy": lambda n, h, rng: ar1(n, 0.0, rng) * h / h.mean(),
}


def coverage(noise, n: int, curves: int, cov: str, rng: np.random.Generator) -> tuple[float, float]:
    hits = np.zeros(2)
    for _ in range(curves):
        h = (0.05 + 0.65 * np.exp(-np.arange(n) / (n / 8))) * (1 + 0.02 * rng.standard_normal(n))
        law = fit_entropy_law(h, B - A * np.exp(h) + NOISE * noise(n, h, rng), cov=cov)
        for i, (name, truth) in enumerate((("a", A), ("b", B))):
            low, high = law.interval(name)
            hits[i] += low <= truth <= high
    return tuple(hits / curves)


def main() -> None:
    curves = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print("| noise | errors |", " | ".join(f"{n} steps" for n in STEPS), "|")
    print("| --- | --- |", " | ".join("---" for _ in STEPS), "|")
    for name, noise in NOISES.items():
        for cov in ("hac", "iid"):
            cells = [coverage(noise, n, curves, cov, np.random.default_rng(n)) for n in STEPS]
            print(f"| {name} | {cov} |", " | ".join(f"{a:.1%}, {b:.1%}" for a, b in cells), "|", flush=True)


if __name__ == "__main__":
    main()
