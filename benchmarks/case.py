"""What is measured: one op in one direction at one shape, by several contenders that compute the same thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Call = Callable[[], Any]


@dataclass
class Contender:
    """One implementation. `build` makes the call that is timed, with whatever the call needs to exist before it (the
    forward pass, where the backward pass is timed); it is dropped with the call."""

    name: str
    build: Callable[[], Call]
    whole: Call | None = None
    """What peak memory is taken of, where that is more than the call: the forward pass too."""
    error: Callable[[Any], dict[str, float]] | None = None
    """Of what `whole` (or else the call) returns: the largest absolute error against float64, by output."""
    is_eager: bool = False
    """Eager PyTorch: the ratio is to the fastest of these."""
    note: str = ""


@dataclass
class Ceiling:
    """The least time that the hardware could take, from a rate measured in the same run."""

    name: str
    work: float
    """Elements, bytes or operations of the case, in the unit of the rate per second."""
    rate: Callable[[], float]
    """Measures it. On a CPU it is called between the contenders' calls, as often as they are."""
    unit: str


@dataclass
class Case:
    op: str
    direction: str
    shape: str
    dtype: str
    contenders: list[Contender]
    ceiling: Ceiling
    missing: dict[str, str] = field(default_factory=dict)
    """Peer -> why it is not among the contenders."""


@dataclass
class Row:
    """A line of the table. Seconds and bytes; None: not measured, and `note` says why."""

    op: str
    direction: str
    shape: str
    dtype: str
    contender: str
    seconds: float | None = None
    """Median; on a GPU of the device time."""
    fastest_seconds: float | None = None
    """CPU: the least of those that the median is of."""
    eager_seconds: float | None = None
    """GPU: median of a call from Python."""
    memory_bytes: int | None = None
    """Peak beyond inputs and outputs."""
    error: dict[str, float] | None = None
    ratio: float | None = None
    """Time of the fastest eager PyTorch over this one's, of medians."""
    ceiling_share: float | None = None
    """The least time by the ceiling over this one's; on a CPU over the fastest."""
    ceiling: str = ""
    note: str = ""
