"""Reads record files, never live objects: charts, reports and the laws fitted to them."""

from pyrl.analysis.entropy_law import EntropyLaw, budget_left, fit_entropy_law

__all__ = ["EntropyLaw", "budget_left", "fit_entropy_law"]
