"""Does the law's beginning tell its end: a fit to a run's first steps, held against the others.

The band around such a prediction must hold more than the scatter of the first steps. Rewards of neighbouring steps
depend on one another, so the first steps show less than the whole range of their noise, and entropy goes on to values
that no fitted step had, where forms that agree over the first steps part. So the band is as wide as two together, the
law's and that of a line in plain H, each with the noise model's variance and effective number of steps.
docs/analysis.md has what share of later steps it holds in fact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from pyrl.analysis.entropy_law import (
    MINIMUM_PAIRS,
    Band,
    Covariance,
    EntropyLaw,
    Method,
    finite_pairs,
    fit_entropy_law,
    linear_fit,
    residual_sd,
)
from pyrl.analysis.noise import difference_noise

EARLY_SHARE = 0.15
"""The paper fits the first 36 of 236 steps, 15%."""
END_SHARE = 0.1
"""The end of a run is the mean of this last share of its steps: the reward of one step is mostly noise."""
FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"exp(H)": np.exp, "H": np.positive}
FEWEST_DEGREES = 3.0
"""Of freedom, however strongly the fitted steps depend on one another: Student's quantile has no use below."""


@dataclass(frozen=True, slots=True)
class EarlyForm:
    """A line in one form of entropy, fitted to the first steps."""

    form: str
    """Of `FORMS`."""
    coefficients: np.ndarray
    """(slope, constant)"""
    covariance: np.ndarray
    variance: float
    """Of one step's reward around the line."""
    degrees_of_freedom: float

    def band(self, entropy: np.ndarray, confidence: float) -> Band:
        design = _design(self.form, entropy)
        reward = design @ self.coefficients
        variance = np.einsum("ij,jk,ik->i", design, self.covariance, design) + self.variance
        half = stats.t.ppf(0.5 + confidence / 2, self.degrees_of_freedom) * np.sqrt(np.maximum(variance, 0.0))
        return Band(reward, reward - half, reward + half)


@dataclass(frozen=True, slots=True)
class EarlyPrediction:
    """A law fitted to the first steps, held against the others: reward predicted from their measured entropy."""

    law: EntropyLaw
    share: float
    n_fit: int
    n_predicted: int
    last_fit_step: int
    rmse: float
    """Over all predicted steps, in units of reward; it holds the noise of a step's reward too."""
    noise_rmse: float
    """What the law fitted to the whole run leaves over the same steps."""
    noise_sd: float | None
    """Standard deviation of a step's own noise over the same steps, by first differences of the reward: no prediction
    from entropy alone leaves less. None below 10 of them."""
    end_error: float
    """Predicted minus measured mean reward of the last tenth of the run."""
    band_coverage: float
    """Share of the predicted steps that the 95% band of `predict` holds."""
    law_band_coverage: float
    """The same of the law's own prediction band, which takes the law as true and the steps as independent."""
    forms: tuple[EarlyForm, ...]

    def predict(self, entropy: ArrayLike, confidence: float = 0.95) -> Band:
        """The law's reward at `entropy` [n], and the band of all forms together around one new step's reward."""
        return _joint_band(self.law, self.forms, np.asarray(entropy, dtype=np.float64), confidence)


def predict_from_start(
    steps: ArrayLike, entropy: ArrayLike, reward: ArrayLike, *, share: float = EARLY_SHARE,
    method: Method = "ols", cov: Covariance = "hac",
) -> EarlyPrediction:  # fmt: skip
    """Fit the first `share` of the finite pairs (at least 5) and predict the others from their entropy.

    ValueError: `share` outside (0, 1), the first pairs cannot be fitted, or fewer than 5 pairs remain to predict.
    """
    if not 0 < share < 1:
        raise ValueError(f"share {share}: want a fraction between 0 and 1, e.g. {EARLY_SHARE}")
    (steps, h, y), _ = finite_pairs(steps, entropy, reward)
    n_fit = max(MINIMUM_PAIRS, round(share * h.size))
    if h.size - n_fit < MINIMUM_PAIRS:
        raise ValueError(f"{h.size} finite pairs: {n_fit} to fit leave {max(0, h.size - n_fit)} to predict, want at "
                         f"least {MINIMUM_PAIRS}")  # fmt: skip
    law = fit_entropy_law(h[:n_fit], y[:n_fit], method=method, cov=cov)
    whole = fit_entropy_law(h, y, method=method, cov=cov)
    later, measured = h[n_fit:], y[n_fit:]
    error = law.predict(later) - measured
    end = max(1, round(END_SHARE * h.size))
    forms = tuple(_fit_form(form, h[:n_fit], y[:n_fit], method, cov) for form in FORMS)
    return EarlyPrediction(
        law=law, share=share, n_fit=n_fit, n_predicted=h.size - n_fit, last_fit_step=int(steps[n_fit - 1]),
        rmse=_rms(error), noise_rmse=_rms(whole.predict(later) - measured), noise_sd=difference_noise(measured),
        end_error=float(error[-end:].mean()),
        band_coverage=_coverage(_joint_band(law, forms, later, 0.95), measured),
        law_band_coverage=_coverage(law.predict(later, 0.95), measured), forms=forms,
    )  # fmt: skip


def _joint_band(law: EntropyLaw, forms: Sequence[EarlyForm], entropy: np.ndarray, confidence: float) -> Band:
    bands = [form.band(entropy, confidence) for form in forms]
    return Band(law.predict(entropy), np.min([b.low for b in bands], 0), np.max([b.high for b in bands], 0))


def _design(form: str, entropy: np.ndarray) -> np.ndarray:
    return np.column_stack([FORMS[form](entropy), np.ones_like(entropy)])


def _fit_form(form: str, h: np.ndarray, y: np.ndarray, method: Method, cov: Covariance) -> EarlyForm:
    fit = linear_fit(_design(form, h), y, method=method, cov=cov)
    variance, freedom = residual_sd(fit.residuals, method) ** 2, float(h.size - 2)
    if fit.noise is not None:
        variance = max(variance, fit.noise.variance)
        freedom = max(fit.noise.effective_steps - 2, FEWEST_DEGREES)
    return EarlyForm(form, fit.coefficients, fit.covariance, variance, freedom)


def _coverage(band: Band, reward: np.ndarray) -> float:
    return float(((band.low <= reward) & (reward <= band.high)).mean())


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
