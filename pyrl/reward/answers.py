"""Finding the final answer in a response, and the text form in which two answers are compared first.

Every function is linear in the length of its input: responses are hostile text. Standard library only.
"""

from __future__ import annotations

import re

_BOX_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_ANSWER_LINE = re.compile(r"\banswer[*_ \t]*[:\N{FULLWIDTH COLON}][*_\s]*(\S[^\n]*)", re.IGNORECASE)

_NO_SPACE = re.compile(r"(?<!\\)\\!\s*(?![a-zA-Z\s])")
_SPACING = re.compile(r"(?<!\\)\\(?:[,;:!> ]|$)|\\q?quad(?![a-zA-Z])|~|\\(?:displaystyle|textstyle|limits)(?![a-zA-Z])")
_ROMAN_CONSTANT = re.compile(r"\\(?:mathrm|operatorname|text|rm)\s*\{\s*([ei])\s*\}")
_COLOUR = re.compile(r"\\(?:text)?color\s*\{[a-zA-Z]+\}")
_ROOT_SIGN = re.compile("\N{SQUARE ROOT}" + r"\s*([0-9]+|[a-z])")
_EMPTY_SET = re.compile(r"\\(?:varnothing|O)(?![a-zA-Z])|\\\{\s*\\\}")
_SIZING = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?")
_LOOSE_SPACE = re.compile(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9\s])")
_INTEGER = re.compile(r"[+-]?[0-9]+")

_SAME = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "\N{MULTIPLICATION SIGN}": r"\times ",
        "\N{MIDDLE DOT}": r"\cdot ",
        "\N{GREEK SMALL LETTER PI}": r"\pi ",
        "\N{INFINITY}": r"\infty ",
        "\N{DEGREE SIGN}": r"^\circ ",
        "\N{IDEOGRAPHIC SPACE}": " ",
        "\N{IDEOGRAPHIC FULL STOP}": ".",
        **{chr(full): chr(full - 0xFF01 + 0x21) for full in range(0xFF01, 0xFF5F)},
    }
)
"""Signs that have another code point for the same meaning, full-width ASCII among them. Not Unicode's NFKC, which would
make 34 of a 4 with a superscript 3 before it."""
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` or `\fbox{...}` that is closed; None if there is none.

    Braces nest and `\{` is not a brace. Of nested boxes the innermost, which starts last, counts.
    """
    stack: list[tuple[bool, int]] = []
    best: tuple[int, int] | None = None
    for token in _BOX_TOKEN.finditer(text):
        symbol = token.group()
        if symbol[-1] == "{" and symbol != r"\{":
            stack.append((len(symbol) > 1, token.end()))
        elif symbol == "}" and stack:
            is_box, start = stack.pop()
            if is_box and (best is None or start > best[0]):
                best = (start, token.start())
    return None if best is None else text[best[0] : best[1]].strip()


def last_answer_line(text: str) -> str | None:
    """What follows the last `Answer:` on its line (or on the next line that has text); None if there is none."""
    found = None
    for match in _ANSWER_LINE.finditer(text):
        found = match.group(1)
    return None if found is None else found.strip().rstrip("*_").strip() or None


def extract_answer(response: str) -> str | None:
    r"""The last `\boxed{}` if there is one, else the last `Answer:` line; None if neither holds anything."""
    boxed = last_boxed(response)
    return (boxed or None) if boxed is not None else last_answer_line(response)


def strip_wrappers(text: str) -> str:
    r"""Without the math delimiters (`$..$`, `\(..\)`), the outer blanks and the final full stop."""
    text = text.strip()
    while True:
        bare = text[:-1].rstrip() if text.endswith(".") and not text.endswith((r"\.", "..", r"\right.")) else text
        for left, right in _WRAPPERS:
            inner = bare[len(left) : len(bare) - len(right)]
            if len(bare) > len(left) + len(right) and bare.startswith(left) and bare.endswith(right):
                if left not in inner and right not in inner:
                    bare = inner.strip()
                break
        if bare == text:
            return text
        text = bare


def tidy(text: str) -> str:
    r"""One way to write what has several: `\dfrac`, thin spaces, `\left`, colours, the empty set, Unicode's signs."""
    text = _NO_SPACE.sub("", _ROOT_SIGN.sub(r"\\sqrt{\1}", text.translate(_SAME)))
    text = _ROMAN_CONSTANT.sub(r" \1", text)
    text = _SPACING.sub(" ", _SIZING.sub(" ", _COLOUR.sub("", text)))
    return re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", _EMPTY_SET.sub(r"\\emptyset ", text)).strip()


def normalise(answer: str) -> str:
    """A form in which equal texts mean equal answers: typography is removed, meaning is not.

    A blank stays where it keeps two letters or digits apart (`1 2` is not `12`).
    """
    text = tidy(strip_wrappers(answer.translate(_SAME)))
    return _LOOSE_SPACE.sub("", re.sub(r"\s+", " ", text)).strip()


def as_integer(normalised: str) -> int | None:
    """The value of plain ASCII digits with an optional sign; None for anything else, or more than 1000 digits."""
    return int(normalised) if len(normalised) <= 1000 and _INTEGER.fullmatch(normalised) else None


def mathd_form(text: str) -> str:
    """The normal form of Hendrycks' MATH (arXiv 2103.03874): coarser than `normalise`, as units and percent go."""
    text = without_text(text.strip()).replace("\n", "").replace(r"\!", "").replace("\\\\", "\\")
    text = re.sub(r"\\[td]frac", r"\\frac", text)
    text = re.sub(r"\\left|\\right|\^\{\\circ\}|\^\\circ|\\\$", "", text)
    text = re.split(r"\\text\{ ", text)[0]  # units
    text = re.sub(r"\\?%", "", text)
    text = re.sub(r"(^|[ {])\.", r"\g<1>0.", text)
    left, equals, right = text.partition("=")
    text = right if equals and len(left) <= 2 and "=" not in right else text
    text = re.sub(r"\\sqrt([^{\s])", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([^{])\{", r"\\frac{\1}{", text)
    text = r"\frac{1}{2}" if text == "0.5" else text
    return re.sub(r"^(-?[0-9]+)/(-?[0-9]+)$", r"\\frac{\1}{\2}", text)


def without_text(text: str) -> str:
    r"""What stands in a `\text{}` around all of it."""
    inner = re.fullmatch(r"\\text\{(.+?)\}", text, re.DOTALL)
    return inner.group(1).strip() if inner else text
