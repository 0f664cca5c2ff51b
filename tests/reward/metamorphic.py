r"""How often the math grader errs on ground truths that are rewritten or altered: `python -m tests.reward.metamorphic`.

A rewriting leaves a ground truth equal, an alteration does not; both by text alone, without the code under test and
without sympy. It needs `PYRL_DATA_DIR`, with the files of tests/reward/test_ground_truths.py.
"""

from __future__ import annotations

import argparse
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as parquet

from pyrl.reward import RewardPool

FILES = ("aime24", "aime25", "amc23", "math500", "DAPO-Math-17k")
INTEGERS = 300
"""Drawn from the truths of a file that are integers: DAPO-Math-17k has 4,000 of them, all alike."""
TIMEOUT_SECONDS = 30.0
_FONT = re.compile(r"\\(?:text|mathrm|mbox)\b")
_INTEGER = re.compile(r"-?[0-9]+")
_DECIMAL = re.compile(r"-?[0-9]*\.[0-9]+")
_FRACTION = re.compile(r"(?P<sign>-?)\\[dt]?frac\{(?P<top>[0-9]+)\}\{(?P<bottom>[0-9]+)\}")
_TERM = re.compile(r"(?:[0-9+*/^{}(). \-]|[a-zA-Z](?![a-zA-Z])|\\(?:[dt]?frac|sqrt|pi|cdot|left|right)(?![a-zA-Z]))+")
_NUMBER = re.compile(r"(?<![0-9.,_])[0-9]+(?![0-9.,])")


def truths_of(name: str) -> list[str]:
    """The distinct ground truths of a file, of the integers at most INTEGERS."""
    table = parquet.read_table(Path(os.environ["PYRL_DATA_DIR"]) / f"{name}.parquet", columns=["reward_model"])
    truths = sorted({row["ground_truth"] for row in table["reward_model"].to_pylist()})
    integers = [truth for truth in truths if _INTEGER.fullmatch(truth)]
    kept = set(random.Random(0).sample(integers, min(INTEGERS, len(integers))))
    return [truth for truth in truths if truth in kept or not _INTEGER.fullmatch(truth)]


def rewritings(truth: str) -> Iterator[str]:
    """Texts that mean the same."""
    yield rf"\displaystyle {truth}"
    yield rf"$ {truth} $."
    yield truth.replace(r"\frac", r"\dfrac").replace(",", r",\;") if not re.search(r"[0-9],[0-9]{3}", truth) else truth
    if is_quantity(truth):
        yield rf"\text{{The answer is }} {truth}"
        yield rf"\text{{Value}} = {truth}"
        yield rf"{truth} = x"
        yield rf"\textbf{{(C)}}\ {truth}"
        yield rf"{truth}\text{{ units}}"
    if is_term(truth):
        yield rf"\frac{{2\left({truth}\right)}}{{2}}"
        yield rf"\left({truth}\right) + 10^{{-20}} - 10^{{-20}}"
        yield rf"-\left(-1\right)\left({truth}\right)"
        yield rf"i^2\cdot\left(-\left({truth}\right)\right)"
    if _INTEGER.fullmatch(truth):
        yield f"{truth}.0"
        yield f"{truth}e0"
        yield "".join(chr(ord(c) - 0x30 + 0xFF10) if c.isdigit() else c for c in truth)
    if fraction := _FRACTION.fullmatch(truth):
        sign, top, bottom = fraction.groups()
        yield f"{sign}{top}/{bottom}"
        yield rf"{sign}\frac{{{7 * int(top)}}}{{{7 * int(bottom)}}}"
        yield rf"{sign}{top}\cdot {bottom}^{{-1}}"


def alterations(truth: str) -> Iterator[str]:
    """Texts that mean something else, most of them nearly the same."""
    if is_quantity(truth):
        for words in ("dozen", "factorial", "is wrong", "or more", "plus one", "and a half"):
            yield rf"{truth}\text{{ {words}}}"
        yield rf"\text{{not }} {truth}"
        yield rf"{truth} \text{{ or }} 987654321"
        yield rf"987654321 = {truth}"
        yield r"\textbf{(C)}\ 987654321"
    if is_term(truth):
        yield rf"\left({truth}\right) + 10^{{-20}}"
        yield rf"\left({truth}\right) - 1"
        yield rf"\frac{{10^{{20}}+1}}{{10^{{20}}}}\left({truth} + 987654321\right)"
        yield rf"\left({truth}\right) i + 1"
    numbers = list(_NUMBER.finditer(truth))
    if numbers and not _FONT.search(truth):
        for number in (numbers[0], numbers[-1]):
            yield f"{truth[: number.start()]}{int(number.group()) + 1}{truth[number.end() :]}"
    if _INTEGER.fullmatch(truth):
        yield f"{truth}.000001"
        yield f"{truth}:{truth}0"
        if int(truth):
            yield rf"{truth}\text{{ thousand}}"
            yield f"{truth}e1"


def is_term(truth: str) -> bool:
    """A number or a term of sums, products, powers and roots: no list, equation, interval, word, unit or base."""
    letters = set(re.sub(r"\\[a-z]+", "", truth)) & set("ABCDEFGHIJiejk")
    mixed = re.search(r"[0-9]\s*\\[dt]?frac|^\(?[a-zA-Z]\)?$", truth)
    return bool(_TERM.fullmatch(truth)) and not letters and mixed is None


def is_quantity(truth: str) -> bool:
    """A term that is a number."""
    return is_term(truth) and not re.search("[a-zA-Z]", re.sub(r"\\[a-z]+", " ", truth))


def pairs_of(name: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(rewritten answer, truth) and (altered answer, truth), each once."""
    truths = truths_of(name)
    equal = {(answer, truth) for truth in truths for answer in rewritings(truth) if answer != truth}
    other = {(answer, truth) for truth in truths for answer in alterations(truth) if answer != truth}
    return sorted(equal), sorted(other)


def judge(pool: RewardPool, pairs: list[tuple[str, str]], outcome: str) -> list[tuple[str, str, str]]:
    """(answer, truth, verdict) of the pairs with another outcome."""
    verdicts = pool.grade([(rf"Hence \boxed{{{answer}}}.", truth) for answer, truth in pairs])
    return [(*pair, v.outcome) for pair, v in zip(pairs, verdicts, strict=True) if v.outcome != outcome]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", default=FILES, help=f"of {', '.join(FILES)}; default all")
    parser.add_argument("--errors", action="store_true", help="print every pair that is judged unlike its making")
    arguments = parser.parse_args()
    with RewardPool("math", 1, TIMEOUT_SECONDS) as pool:
        for name in arguments.files:
            equal, other = pairs_of(name)
            refused, accepted = judge(pool, equal, "right"), judge(pool, other, "wrong")
            print(f"| {name} | {len(equal)} | {len(refused)} | {len(other)} | {len(accepted)} |", flush=True)
            for pair in [*refused, *accepted] if arguments.errors else ():
                print("  ", *map(repr, pair))


if __name__ == "__main__":
    main()
