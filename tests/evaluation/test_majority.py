"""maj@k against every draw, against exact integers, and, of 1,024 samples, against random draws and identities."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, pairwise
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrl.evaluation.majority import majority_is_right
from pyrl.evaluation.metrics import maj_at_k
from pyrl.evaluation.scores import powers_of_two

ZIPF = [max(1, round(174 / rank)) for rank in range(1, 201)]
"""200 answers of about 1,024 samples; the most frequent has 174 votes, half of them have one."""
LARGE = {
    "many answers of one frequency": [5] * 176 + [6] * 24,
    "many frequencies": [*range(1, 45), 34],
    "Zipf": ZIPF + [1] * (1024 - sum(ZIPF)),
    "two answers": [500, 500] + [2] * 12,
    "a clear winner": [512, 256, 128, 64, 32] + [1] * 32,
    "no two samples agree": [1] * 1024,
}


def of_one(votes: Sequence[int], right: int, silent: int, k: int) -> float:
    return majority_is_right(votes, [float(i == right) for i in range(len(votes))], silent, k)


def by_every_draw(samples: Sequence[tuple[int | None, float]], k: int) -> float:
    """`samples`: (answer, share of it that is right)"""
    found = []
    for draw in combinations(samples, k):
        votes, share = Counter(answer for answer, _ in draw if answer is not None), dict(draw)
        found.append(np.mean([share[a] for a in votes if votes[a] == max(votes.values())]) if votes else 0.0)
    return float(np.mean(found))


def by_integers(votes: Sequence[int], right: int, silent: int, k: int) -> Fraction:
    """Counts the draws by the votes of the right answer, those drawn of the others and how many of these are tied."""
    won = Fraction(0)
    for t in range(1, min(votes[right], k) + 1):
        ways: dict[tuple[int, int], int] = {(0, 0): comb(votes[right], t)}
        for count in [*votes[:right], *votes[right + 1 :]]:
            more: dict[tuple[int, int], int] = defaultdict(int)
            for (used, ties), n in ways.items():
                for take in range(min(count, t, k - t - used) + 1):
                    more[used + take, ties + (take == t)] += n * comb(count, take)
            ways = more
        won += sum(Fraction(n * comb(silent, k - t - used), 1 + ties) for (used, ties), n in ways.items())
    return won / comb(sum(votes) + silent, k)


small = st.lists(st.tuples(st.integers(1, 4), st.sampled_from([0.0, 0.0, 0.25, 1.0])), min_size=1, max_size=4)


@given(small, st.integers(0, 3), st.data())
@settings(deadline=None)
def test_every_draw_of_a_small_question(answers: list[tuple[int, float]], silent: int, data: st.DataObject) -> None:
    samples = [(i, share) for i, (n, share) in enumerate(answers) for _ in range(n)] + [(None, 0.0)] * silent
    k = data.draw(st.integers(1, min(len(samples), 8)))
    found = majority_is_right([n for n, _ in answers], [share for _, share in answers], silent, k)
    assert found == pytest.approx(by_every_draw(samples, k), rel=1e-12, abs=1e-12)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=8), st.integers(0, 6), st.data())
@settings(deadline=None, max_examples=50)
def test_exact_integers_of_a_larger_question(votes: list[int], silent: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, sum(votes) + silent))
    right = data.draw(st.integers(0, len(votes) - 1))
    expected = float(by_integers(votes, right, silent, k))
    assert of_one(votes, right, silent, k) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("votes", "right", "silent", "k"),
    [([5] * 40 + [7] * 10, 49, 30, 64), ([200, 180, 20, 20, 10, 5], 1, 9, 50), ([1] * 300, 7, 20, 60),
     (list(range(1, 30)), 28, 20, 40), ([300, 290, 120], 1, 30, 90), ([3, 2, 1], 2, 994, 500)],
)  # fmt: skip
def test_exact_integers_of_hundreds_of_samples(votes: list[int], right: int, silent: int, k: int) -> None:
    expected = float(by_integers(votes, right, silent, k))
    assert of_one(votes, right, silent, k) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("votes", "k"), [((600, 424), 512), ((600, 424), 1001), ((520, 504), 127), ((1000, 24), 47)])
def test_two_answers_of_1024_samples_are_a_hypergeometric_sum(votes: tuple[int, int], k: int) -> None:
    draws = [(t, comb(votes[0], t) * comb(votes[1], k - t)) for t in range(k + 1)]
    won = sum(n * (2 if 2 * t > k else 1) for t, n in draws if 2 * t >= k)
    expected = float(Fraction(won, 2 * comb(1024, k)))
    assert of_one(votes, 0, 0, k) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", LARGE)
def test_some_answer_wins_every_draw_of_1024_samples(name: str) -> None:
    votes = LARGE[name]
    assert sum(votes) == 1024
    first = {n: votes.index(n) for n in votes}  # equally frequent answers win equally often
    for k in (64, 1000):
        won = {n: of_one(votes, right, 0, k) for n, right in first.items()}
        assert sum(won[n] for n in votes) == pytest.approx(1.0, abs=1e-14 * len(votes))
        frequent = sorted(won)
        assert all(won[a] <= won[b] + 1e-12 for a, b in pairwise(frequent))


def test_random_draws_of_1024_samples() -> None:
    rng, draws = np.random.default_rng(0), 4000
    for votes in LARGE.values():
        for k in (32, 512):
            drawn = rng.multivariate_hypergeometric(votes, k, size=draws)
            best = drawn == drawn.max(1, keepdims=True)
            right = int(np.argmax(votes))
            seen = best[:, right] / best.sum(1)
            error = max(seen.std(), draws**-0.5) / draws**0.5  # at least that of one draw unlike the others
            assert abs(of_one(votes, right, 0, k) - seen.mean()) <= 5 * error


def test_a_score_of_0_or_1_is_exact() -> None:
    """A question whose score is fixed must not seem to vary."""
    assert of_one([20, 5], 0, 0, 24) == 1.0  # 19 votes at least, of the other 5 at most
    assert of_one([20, 5], 0, 30, 54) == 1.0
    assert of_one([20, 5], 0, 30, 30) < 1.0  # all silent, once in many draws
    assert of_one([1, 9], 0, 0, 9) == 0.0
    assert majority_is_right([7, 3, 90], [1.0, 1.0, 1.0], 0, 40) == 1.0
    assert majority_is_right([7, 3], [0.0, 0.0], 5, 4) == majority_is_right([], [], 5, 4) == 0.0


def test_every_k_of_1024_samples_takes_less_than_a_second() -> None:
    """CPU time, and the least of a few tries, so that other work on the machine does not count. The slowest of these
    takes some 0.4 s on the machine it was written on."""
    for votes in LARGE.values():
        answers = [str(answer) for answer, n in enumerate(votes) for _ in range(n)]
        for right in (answers[0], answers[-1]):
            correct = np.array([[answer == right for answer in answers]])
            seconds = []
            while not seconds or (seconds[-1] >= 1.0 and len(seconds) < 5):
                start = time.process_time()
                for k in powers_of_two(1024):
                    maj_at_k([answers], correct, k)
                seconds.append(time.process_time() - start)
            assert min(seconds) < 1.0
