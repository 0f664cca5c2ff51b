"""What ends an evaluation early."""

from __future__ import annotations


class EvaluationError(RuntimeError):
    """An evaluation could not be finished; what was finished is kept."""
