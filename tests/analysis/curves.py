"""Synthetic training curves with known coefficients."""

import numpy as np
from scipy.signal import lfilter

A, B, NOISE = 0.3, 0.8, 0.02


def entropy_curve(n: int, rng: np.random.Generator) -> np.ndarray:
    """Entropy that collapses as in GRPO: from about 0.7 nats towards 0.05, most of it in the first quarter."""
    return (0.05 + 0.65 * np.exp(-np.arange(n) / (n / 8))) * (1 + 0.02 * rng.standard_normal(n))


def ar1(n: int, rho: float, rng: np.random.Generator) -> np.ndarray:
    """Stationary AR(1) noise of unit variance."""
    return lfilter([1.0], [1.0, -rho], rng.standard_normal(n + 300) * np.sqrt(1 - rho**2))[300:]


def law_curve(n: int, rng: np.random.Generator, *, rho: float = 0.0, a: float = A, b: float = B):
    """(entropy, reward) of n steps that follow R = -a exp(H) + b."""
    entropy = entropy_curve(n, rng)
    return entropy, b - a * np.exp(entropy) + NOISE * ar1(n, rho, rng)
