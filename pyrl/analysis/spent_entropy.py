"""What a running fit of the law may say when a policy has spent nearly all of its entropy.

On a curve that bends, or that another regressor explains better, the law's ceiling is a number without meaning: runs
went on to end above it. So the notice is given only where the law holds by every check of `pyrl analyze`, and where its
ceiling is known well enough to be of use. It gives numbers with intervals and no forecast of what more steps gain.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyrl.analysis.entropy_law import Budget, EntropyLaw, budget_left, finite_pairs, fit_entropy_law
from pyrl.analysis.law_checks import LawCheck, check_law
from pyrl.analysis.regressors import CONTROLLED, LAW, MARGIN, TIME_FORMS

NOW_STEPS = 5
"""Steps whose mean exp(H) is the policy's present."""
SPENT_SHARE = 0.9
LARGEST_PROMISE = 0.2
"""Share of the law's rise by which the upper end of the ceiling's interval may exceed the law's present reward."""


def spent_entropy_notice(steps: Sequence[int], entropy: Sequence[float], reward: Sequence[float]) -> str | None:
    """A sentence on the run so far, [n] each in the order of the steps; None where the law does not hold, the entropy
    is not spent, the reward also rises with the step at given entropy, or the ceiling is not known well enough.
    ValueError as in `fit_entropy_law`."""
    (places, h, y), _ = finite_pairs(steps, entropy, reward)
    law = fit_entropy_law(h, y)
    now = float(np.log(np.exp(h[-NOW_STEPS:]).mean()))
    budget = budget_left(law, now)
    if budget.spent is None or budget.spent < SPENT_SHARE or not _is_known(law, budget, now):
        return None
    check = check_law(law, h, y, steps=places)
    rises_beside = check.rivals is not None and check.rivals.lead([LAW + CONTROLLED]) <= -MARGIN
    return _sentence(int(places[-1]), law, budget, check) if check.verdict == "follows" and not rises_beside else None


def _is_known(law: EntropyLaw, budget: Budget, now: float) -> bool:
    rise = law.ceiling - float(law.predict(law.start_entropy))
    return budget.ceiling_high - float(law.predict(now)) <= LARGEST_PROMISE * rise


def _sentence(step: int, law: EntropyLaw, budget: Budget, check: LawCheck) -> str:
    bend = "" if check.bend_p is None else f", no bend that matters (p = {check.bend_p:.2g})"
    lead = "" if check.rivals is None else f", {check.rivals.lead(TIME_FORMS):.1f} of AICc ahead of a trend in time"
    return (
        f"step {step}: by the law R = -a exp(H) + b fitted to {law.n} steps{bend}{lead}, {budget.spent:.0%} of the "
        f"entropy is spent, counted as exp(H) - 1; the law's reward at zero entropy is {budget.ceiling:.3g} (95% "
        f"interval {budget.ceiling_low:.3g} to {budget.ceiling_high:.3g}). It holds for the policies seen so far"
    )
