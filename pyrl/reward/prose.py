r"""Words around a number that leave it as it is: `\text{The answer is } 42`, `\text{Area}=5`, `\approx 3.14`.

Only words of the lists here are taken away: `\text{at least } 42` and `42\text{ is wrong}` keep theirs, and are no
number then. Standard library only; every function is linear in the length of its input.
"""

from __future__ import annotations

import re

_FONT = r"\\(?:text(?:rm|bf|it|normal)?|math(?:rm|bf|it)|mbox)"
_GAP = r"(?:\\[ ,;:!]|~|\s)*"
_LEAD = re.compile(
    rf"(?:{_FONT}\s*\{{(?P<text>[^{{}}\\]{{1,80}})\}}"
    r"|(?P<plain>[A-Za-z][A-Za-z ,']{0,80}?(?::|\s(?=[-0-9\\$([{.]))))"
    rf"{_GAP}(?P<sign>[:=])?\s*(?P<rest>.*\S.*)",
    re.DOTALL,
)
_CHINESE_LEAD = re.compile(
    r"[答案结果最终所以因此故值等于为是的和面积总数共有:]{1,20}(?P<rest>[-0-9\\$([{.].*)", re.DOTALL
)
_TAIL = re.compile(rf"(?P<rest>.*[0-9A-Za-z)}}\]]){_GAP}{_FONT}\s*\{{(?P<text>[^{{}}\\]{{1,40}})\}}", re.DOTALL)
_IN_TEXT = re.compile(rf"{_FONT}\s*\{{(?P<text>[^{{}}\\]*[0-9][^{{}}\\]*)\}}")
_NAME = re.compile(r"(?:[A-Za-z][A-Za-z' -]{1,40})")
_WHOLE_TEXT = re.compile(rf"{_FONT}\s*\{{([^{{}}\\]*)\}}")
_SENTENCE = re.compile(r"[A-Za-z][A-Za-z'-]*(?:[,;]?\s+[A-Za-z][A-Za-z'-]*){2,200}")
_APPROXIMATELY = re.compile(r"\\(?:approx|simeq|cong)(?![a-zA-Z])|\N{ALMOST EQUAL TO}")
_BRACED_DIGITS = re.compile(r"[+-]?(?:[0-9]+|\{[0-9]+\})+")

_NOUNS = frozenset(
    """
    answer answers result value values solution solutions sum product difference quotient remainder total number area
    perimeter volume length width height distance radius diameter circumference probability ratio slope angle side
    measure maximum minimum largest smallest greatest integer expression function final correct required desired
    constant coefficient term cost price age speed time day count limit integral derivative determinant
    """.split()
)
_LINKS = frozenset("is are equals equal be get have obtain has becomes".split())
_FILLERS = frozenset(
    """
    the an our its this that it there of to in for so thus hence therefore then and we i find value when which must
    """.split()
)
_HEDGES = frozenset(
    """
    not no non never minus negative plus less more fewer greater most least about over under below above almost nearly
    approximately half twice double triple square squared cube opposite inverse reciprocal except without if or
    """.split()
)
_TAILS = frozenset(
    ("is the answer", "is the final answer", "is the result", "in total", "in all", "altogether", "total")
)
_STARTS = frozenset(("so", "thus", "hence", "therefore"))


def sentence(text: str) -> str | None:
    """The words of a text of three or more, without digits or formulas, in lower case; None for another text."""
    inner = _WHOLE_TEXT.fullmatch(text)
    words = (inner[1] if inner else text).strip(" .!")
    return " ".join(words.lower().split()) if _SENTENCE.fullmatch(words) else None


def without_prose(text: str) -> str:
    """The value alone, where all that stands around it leaves it as it is; otherwise the text itself."""
    while text.startswith("{") and _closing(text) == len(text) - 1:
        text = text[1:-1].strip()
    inner = _IN_TEXT.fullmatch(text)
    if inner:
        stripped = _without_lead(inner["text"].strip())
        return stripped if stripped != inner["text"].strip() or re.match(r"-?[0-9]", stripped) else text
    text = _without_tail(_without_lead(text))
    return re.sub("[{}]", "", text) if _BRACED_DIGITS.fullmatch(text) else text


def _closing(text: str) -> int:
    """Where the brace is closed with which the text starts; -1 if nowhere."""
    depth = 0
    for place, character in enumerate(text):
        escaped = place > 0 and text[place - 1] == "\\"
        depth += 0 if escaped else (character == "{") - (character == "}")
        if depth == 0:
            return place
    return -1


def _without_lead(text: str) -> str:
    if chinese := _CHINESE_LEAD.fullmatch(text):
        return chinese["rest"].strip()
    if approximate := _APPROXIMATELY.match(text):
        return text[approximate.end() :].strip()
    match = _LEAD.fullmatch(text)
    if match is None:
        return text
    lead = match["plain"] or match["text"]
    if match["sign"] == "=":
        is_name = match["text"] and _NAME.fullmatch(lead.strip()) and not _HEDGES & set(lead.lower().split())
        return match["rest"].strip() if is_name else text
    announces = _announces(lead, has_colon=match["sign"] == ":" or lead.rstrip().endswith(":"))
    return match["rest"].strip() if announces else text


def _announces(lead: str, *, has_colon: bool) -> bool:
    """Whether words only announce a value: known ones, the last a verb, "to" or "answer", or with a colon; or "so"."""
    words = re.sub(r"[,':]", " ", lead.lower()).split()
    if len(words) == 1 and words[0] in _STARTS:
        return True
    if not all(len(word) == 1 or {word, word.removesuffix("s")} & (_NOUNS | _LINKS | _FILLERS) for word in words):
        return False
    if not (_NOUNS | _LINKS) & set(words):
        return False
    return has_colon or words[-1] in _LINKS or words[-1] in ("to", "answer")


def _without_tail(text: str) -> str:
    match = _TAIL.fullmatch(text)
    return match["rest"].rstrip() if match and " ".join(match["text"].lower().split()).strip(".") in _TAILS else text
