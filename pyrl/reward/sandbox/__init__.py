"""Runs programs that nobody trusts, in namespaces of their own (launcher.py says how)."""

from pyrl.reward.sandbox.run import (
    Judgement,
    Limits,
    Run,
    SandboxError,
    check_available,
    run_scripts,
    run_tests,
)

__all__ = ["Judgement", "Limits", "Run", "SandboxError", "check_available", "run_scripts", "run_tests"]
