"""What a grader is, and which tasks have one. Standard library only: grader processes import this first."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version

RawVerdict = tuple[str, str, str | None]
"""(outcome, reason, extracted): the fields of `pyrl.types.Verdict`, without its import of torch. A reason is a code
from below, followed by `: detail` where there is more to say."""

Grader = Callable[[str, str], RawVerdict]
"""grade(response, ground_truth). What it raises is reported as unjudged."""

EQUAL = "equal"
DIFFERENT = "different"
NO_ANSWER = "no_answer"
UNREADABLE_ANSWER = "unreadable_answer"
OVER_LIMIT = "over_limit"
UNREADABLE_GROUND_TRUTH = "unreadable_ground_truth"
TIMEOUT = "timeout"
CRASH = "crash"

PROGRAM_SECONDS = 4.0
"""Wall limit of all tests of a program, unless the task is `code:SECONDS`."""
SANDBOX_SECONDS = 5.0
"""What a pool must allow beside it for making the sandbox."""

LOADERS = {
    "code": "pyrl.reward.code:load_grader",
    "countdown": "pyrl.reward.countdown:load_grader",
    "math": "pyrl.reward.math:load_grader",
    "reasoning_gym": "pyrl.reward.reasoning_gym:load_grader",
    "ring_walk": "pyrl.reward.ring_walk:load_grader",
}
"""Task (the part before a colon) -> `module:function`; the function gets the part after the colon ("" if there is
none) and returns a `Grader`."""

FORM_LOADERS = {"math": "pyrl.reward.forms:load_grader"}
"""Task -> loader of what gives equal answers one form, by which they vote; other tasks' answers vote as they stand."""

VARIANTS: dict[str, tuple[str, ...] | None] = {"math": ("paper",), "reasoning_gym": None}
"""Task -> what may follow its colon; None: something must, and the loader knows what. Tasks not listed have none."""

REVISIONS = {"code": 1, "countdown": 1, "math": 3, "reasoning_gym": 1, "ring_walk": 1}
"""Task -> number to raise with every change of its grader that can change a verdict, or the form of an answer."""

LIBRARIES = {
    "math": ("math-verify", "latex2sympy2-extended", "sympy"),
    "reasoning_gym": ("reasoning-gym", "sympy"),
}
"""Task -> packages whose release can change a verdict."""


class UnknownTaskError(LookupError):
    """No grader goes by that name; the text lists those that do."""


class GraderUnavailableError(RuntimeError):
    """This machine lacks what the task's grader needs; the text says what, and the remedy."""


def refuse_length(text: str, most: int) -> RawVerdict | None:
    """The verdict on an answer without text, or of more than `most` characters; None for any other."""
    if not text:
        return "wrong", NO_ANSWER, None
    return ("wrong", f"{OVER_LIMIT}: {len(text)} characters, at most {most}", None) if len(text) > most else None


def split_task(task: str) -> tuple[str, str]:
    """`family:variant` -> (loader, variant). Raises UnknownTaskError."""
    family, colon, variant = task.partition(":")
    variants = VARIANTS.get(family, ())
    is_known = bool(variant) if variants is None else variant in variants or not colon
    is_known |= family == "code" and _is_seconds(variant)
    if family not in LOADERS or not is_known:
        raise UnknownTaskError(f"reward.task {task!r} is unknown; known tasks: {', '.join(map(repr, _known_tasks()))}")
    return LOADERS[family], variant


def grader_version(task: str) -> str:
    """What a stored verdict names beside its task: two equal texts judge alike.

    The task, the revision of its grader and the releases of the libraries that it judges with, for example
    `math:paper 1, math-verify 0.9.0, sympy 1.14.0`. Raises UnknownTaskError; `importlib.metadata.PackageNotFoundError`
    if a library is not installed.
    """
    split_task(task)
    family = task.partition(":")[0]
    libraries = (f"{name} {version(name)}" for name in LIBRARIES.get(family, ()))
    return ", ".join([f"{task} {REVISIONS[family]}", *libraries])


def _known_tasks() -> list[str]:
    known = []
    for family in sorted(LOADERS):
        variants = VARIANTS.get(family, ())
        known += [f"{family}:NAME"] if variants is None else [family, *(f"{family}:{name}" for name in variants)]
        known += ["code:SECONDS"] if family == "code" else []
    return known


def least_timeout(task: str) -> float:
    """The least wall limit of a pool for a known `task`, seconds; 0 where any will do."""
    family, _, variant = task.partition(":")
    return 0.0 if family != "code" else (float(variant) if variant else PROGRAM_SECONDS) + SANDBOX_SECONDS


def _is_seconds(text: str) -> bool:
    try:
        return 0 < float(text) < 1e6
    except ValueError:
        return False


def load_grader(loader: str, variant: str) -> Grader:
    """Import `module:function` and make the grader. Raises UnknownTaskError for an unknown variant."""
    module, _, function = loader.partition(":")
    return getattr(import_module(module), function)(variant)
