"""A fit to a run's beginning, and what its band holds of the rest."""

import math

import numpy as np
import pytest
from scipy import stats

from pyrl.analysis.early_prediction import predict_from_start
from pyrl.analysis.entropy_law import fit_entropy_law
from pyrl.analysis.noise import difference_noise
from tests.analysis.curves import NOISE, A, B, ar1, entropy_curve, law_curve


def test_early_prediction_is_a_fit_to_the_first_steps_alone() -> None:
    rng = np.random.default_rng(4)
    entropy, reward = law_curve(240, rng)
    entropy[7] = np.nan
    steps = np.arange(1, 241)
    early = predict_from_start(steps, entropy, reward)
    kept = np.isfinite(entropy)
    law = fit_entropy_law(entropy[kept][:36], reward[kept][:36])
    error = law.predict(entropy[kept][36:]) - reward[kept][36:]
    assert (early.n_fit, early.n_predicted, early.last_fit_step) == (36, 203, 37)
    assert early.rmse == pytest.approx(math.sqrt(np.mean(error**2)))
    assert early.end_error == pytest.approx(error[-24:].mean())
    assert NOISE * 0.8 < early.noise_rmse <= early.rmse < 2 * NOISE and abs(early.end_error) < NOISE
    assert early.band_coverage >= early.law_band_coverage > 0.85
    assert early.noise_sd == pytest.approx(NOISE, rel=0.15)
    late = reward + np.where(steps > 120, 0.2, 0.0)  # what happens later cannot reach the fit
    assert predict_from_start(steps, entropy, late).law.a == early.law.a


def test_early_prediction_needs_pairs_on_both_sides() -> None:
    entropy, reward = law_curve(9, np.random.default_rng(5))
    with pytest.raises(ValueError, match="5 to fit leave 4 to predict"):
        predict_from_start(range(9), entropy, reward)
    with pytest.raises(ValueError, match=r"share 1\.5"):
        predict_from_start(range(9), entropy, reward, share=1.5)


def coverages(reward_of, n: int, curves: int = 40) -> tuple[float, float]:
    """Mean share of later steps inside the band, and inside the law's own."""
    rng = np.random.default_rng(n)
    found = []
    for _ in range(curves):
        entropy = entropy_curve(n, rng)
        early = predict_from_start(np.arange(n), entropy, reward_of(entropy, rng))
        found.append((early.band_coverage, early.law_band_coverage))
    return tuple(np.mean(found, axis=0))


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_the_band_holds_its_share_under_dependence(rho: float) -> None:
    """0.93: the 95% less two standard errors of the mean over 40 curves, whose bands each hit or miss as a whole."""
    band, _ = coverages(lambda h, rng: B - A * np.exp(h) + NOISE * ar1(h.size, rho, rng), 240)
    assert band > 0.93


def test_the_band_survives_a_form_that_is_not_quite_the_laws() -> None:
    """Reward linear in H: the law's own band, which knows no other form, loses the later steps."""
    band, own = coverages(lambda h, rng: 0.9 - 0.5 * h + NOISE * ar1(h.size, 0.0, rng), 240)
    assert band > 0.93 and own < band - 0.05


def test_the_band_of_white_noise_is_the_textbooks() -> None:
    """With cov="iid" each form's band is that of ordinary least squares for a new observation."""
    entropy, reward = law_curve(100, np.random.default_rng(1))
    early = predict_from_start(np.arange(100), entropy, reward, cov="iid")
    x, y, new = np.exp(entropy[:15]), reward[:15], np.exp(0.3)
    line = stats.linregress(x, y)
    sd = math.sqrt(np.sum((y - line.intercept - line.slope * x) ** 2) / 13)
    half = stats.t.ppf(0.975, 13) * sd * math.sqrt(1 + 1 / 15 + (new - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2))
    band = early.forms[0].band(np.array([0.3]), 0.95)
    assert float(band.reward[0]) == pytest.approx(line.intercept + line.slope * new, rel=1e-9)
    assert float(band.high[0] - band.reward[0]) == pytest.approx(half, rel=1e-9)
    joint = early.predict([0.3])
    assert joint.low[0] <= band.low[0] and joint.high[0] >= band.high[0]
    assert float(joint.reward[0]) == pytest.approx(float(band.reward[0]), rel=1e-9)


def test_noise_by_differences_knows_no_law() -> None:
    """A rise of any smooth form, thirty times the noise, leaves the estimate alone; the fit's residual it would not."""
    rng = np.random.default_rng(2)
    t = np.linspace(0, 1, 400)
    for trend in (0.6 * t, 0.6 * t**2, 0.6 * np.sin(3 * t)):
        assert difference_noise(trend + NOISE * rng.standard_normal(400)) == pytest.approx(NOISE, rel=0.12)
    assert difference_noise(trend[:9]) is None
