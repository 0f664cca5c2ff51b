"""Which samples of a question vote for one answer.

All that were judged right vote together, for equal to the ground truth they are one answer. A wrong answer votes by its
form (`pyrl.reward.forms`), which is made when it is graded and stored in its row as `vote`.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

from pyrl.evaluation.store import Sample
from pyrl.reward import RewardPool
from pyrl.reward.forms import Form, form_of, quick_form, text_form
from pyrl.reward.tasks import FORM_LOADERS
from pyrl.reward.unit_names import PERCENT

log = logging.getLogger("pyrl")

RIGHT = "right"
_FRACTION = re.compile(r"-?[0-9]+(?:/[0-9]+)?")


def add_votes(samples: Iterable[Sample], grader: str, open_pool: Callable[[str], RewardPool]) -> None:
    """Set `vote` of graded samples. `open_pool`: a pool with the given loader; each distinct answer is read once, there
    and only if text does not decide it.

    An answer that is not read in the pool's time, or kills its process, votes by its text; how many do is logged.
    """
    samples = list(samples)
    voting = [s for s in samples if s["verdict"] == "wrong" and s["extracted"] is not None]
    answers = list(dict.fromkeys(s["extracted"] for s in voting))
    loader = FORM_LOADERS.get(grader.partition(":")[0])
    forms = _forms(answers, lambda: open_pool(loader)) if loader else {answer: Form(answer) for answer in answers}
    for sample in samples:
        sample["vote"] = None
    for sample in voting:
        sample["vote"] = list(forms[sample["extracted"]])


def _forms(answers: Sequence[str], open_pool: Callable[[], RewardPool]) -> dict[str, Form]:
    forms = {answer: quick_form(answer) for answer in answers}
    hard = [answer for answer, form in forms.items() if form is None]
    if not hard:
        return forms
    with open_pool() as pool:
        verdicts = pool.grade([(answer, "") for answer in hard])
    found = {answer: form_of(verdict.extracted) for answer, verdict in zip(hard, verdicts, strict=True)}
    unread = [answer for answer, form in found.items() if form is None]
    if unread:
        log.warning(
            "%d of %d distinct wrong answers could not be read and vote by their text, for instance %.80r (%s)",
            len(unread), len(answers), unread[0], verdicts[hard.index(unread[0])].reason
        )  # fmt: skip
    return forms | found | {answer: text_form(answer) for answer in unread}


def votes(samples: Sequence[Sample]) -> list[str | None]:
    """What each of a question's graded samples votes for, None without an answer.

    A unit, or the name that an answer is given to (`x = 3`), divides equal values only where samples of the question
    have several: 34 cm and 34 vote together unless another one says 34 m. A percentage is so many hundredths, but
    counts as the number before its sign where others gave this one and none gave hundredths.
    """
    forms = [None if s["vote"] is None else Form(*s["vote"]) for s in samples]
    bare = {form.value for form in forms if form and not form.unit}
    forms = [form and _percentage(form, bare) for form in forms]
    units, names = defaultdict(set), defaultdict(set)
    for form in filter(None, forms):
        units[form.value] |= {form.unit} - {""}
        names[form.value] |= {form.name} - {""}
    return [
        RIGHT if sample["verdict"] == "right" else form and _joined(form, units[form.value], names[form.value])
        for sample, form in zip(samples, forms, strict=True)
    ]


def _percentage(form: Form, bare: set[str]) -> Form:
    if form.unit != PERCENT:
        return form
    number = str(100 * Fraction(form.value)) if _FRACTION.fullmatch(form.value) else form.value
    return form._replace(value=number if number in bare and form.value not in bare else form.value, unit="")


def _joined(form: Form, units: set[str], names: set[str]) -> str:
    """A word that no right answer votes for."""
    return "\n".join(["wrong", form.value, form.unit if len(units) > 1 else "", form.name if len(names) > 1 else ""])
