"""The tables of docs/results/entropy.md, from a study's `study.json`: `python scripts/study_tables.py FOLDER`

Nothing is computed here but the smallest and largest value over the runs of an arm.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

K_SHOWN = ("1", "4", "16", "64")
PREDICTORS = {
    "cov_token_logp_adv": "token, Cov(log pi, A)",
    "cov_token_logp_pi_adv": "token, Cov(log pi, pi A)",
    "cov_response_logp_adv": "response, Cov(log pi, A)",
    "cov_response_logp_pi_adv": "response, Cov(log pi, pi A)",
}


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(f"\n## {title}\n\n| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def cell(interval: dict[str, Any] | None, form: str = ".3f") -> str:
    """`0.968 (0.951 to 0.985)`"""
    if interval is None:
        return "-"
    if interval["low"] is None:
        return f"{interval['mean']:{form}}"
    return f"{interval['mean']:{form}} ({interval['low']:{form}} to {interval['high']:{form}})"


def arms(study: dict[str, Any]) -> None:
    rows = [
        (f"`{a['arm']}`", str(len(a["seeds"])), cell(a["held_out"]), cell(a["held_out_difference"], "+.3f"),
         cell(a["pass_at_k"].get("16")), cell(a["pass_difference"].get("16"), "+.3f"), cell(a["entropy"]),
         cell(a["entropy_ratio"], ".1f"), cell(a["reward"]), cell(a["reward_difference"], "+.3f"))
        for a in study["arms"]
    ]  # fmt: skip
    head = ("arm", "seeds", "held out, pass@1", "minus GRPO", "pass@16", "minus GRPO", "entropy at the end",
            "times GRPO's", "training reward", "minus GRPO")  # fmt: skip
    table("The cure", head, rows)
    at_reward = [(f"`{a['arm']}`", cell(a["entropy_ratio_at_reward"], ".1f")) for a in study["arms"]]
    table("At GRPO's reward", ("arm", "times GRPO's entropy"), at_reward)


def pass_at_k(study: dict[str, Any]) -> None:
    for name, form in (("pass_at_k", ".3f"), ("pass_difference", "+.3f")):
        rows = [[f"`{a['arm']}`", *(cell(a[name][k], form) for k in K_SHOWN)] for a in study["arms"] if a[name]]
        table(name, ("arm", *(f"k = {k}" for k in K_SHOWN)), rows)


def collapse(study: dict[str, Any]) -> None:
    rows = [
        [c["run"], *(f"{c[what][share]:.0%}" for what in ("entropy_consumed", "gain_reached")
                     for share in ("1/12", "1/3"))]
        for c in study["collapse"]
    ]  # fmt: skip
    table("Collapse", ("run", "entropy, by 1/12", "by 1/3", "gain, by 1/12", "by 1/3"), rows)


def law(study: dict[str, Any]) -> None:
    rows, early = [], []
    for run in study["law"]["runs"]:
        fit, check, prediction = run["law"], run["check"], run["early_prediction"]
        first, *_ = check["rivals"]["candidates"]
        behind = {c["name"]: f"{c['behind']:.1f}" for c in check["rivals"]["candidates"]}
        rows.append((run["label"], f"{fit['a']:.3f} +- {fit['a_se']:.3f}", f"{fit['b']:.3f} +- {fit['b_se']:.3f}",
                     f"{fit['r2']:.2f}", f"{fit['rmse']:.3f}", check["verdict"], first["name"], behind["exp(H)"],
                     behind["H"], behind["log H"], behind["log step"], behind["step"]))  # fmt: skip
        early.append((run["label"], f"{prediction['rmse']:.3f}", f"{prediction['noise_rmse']:.3f}",
                      f"{prediction['noise_sd']:.3f}", f"{prediction['end_error']:+.3f}",
                      f"{prediction['band_coverage']:.0%}"))  # fmt: skip
    table("The law", ("run", "a", "b", "R2", "RMSE", "verdict", "best", "exp(H)", "H", "log H", "log step",
                      "step"), rows)  # fmt: skip
    head = ("run", "early law's RMSE", "whole run's", "noise of a step", "error at the end", "inside the band")
    table("Early prediction", head, early)
    groups = study["law"]["groups"]
    print(f"\none law, runs as observations: {json.dumps(groups)}; steps: {json.dumps(study['law']['one_law'])}")


def cause(study: dict[str, Any]) -> None:
    runs = study["law"]["runs"]
    rows = []
    for name, words in PREDICTORS.items():
        found = [d for run in runs for d in run["dynamics"] if d["predictor"] == name]
        spans = [[d[what] for d in found] for what in ("slope", "correlation", "lag1_correlation")]
        rows.append((words, *(f"{min(span):.2f} to {max(span):.2f}" for span in spans)))
    table(f"The cause, {len(runs)} runs", ("predictor", "slope", "correlation", "lag-1 correlation"), rows)
    for arm in dict.fromkeys(c["arm"] for c in study["causes"]):
        bins = [
            (c["difficulty"], str(c["steps"]), f"{c['entropy_change']:+.4f}", f"{c['covariance']:+.3f}",
             "-" if c["correlation"] is None else f"{c['correlation']:+.2f}")
            for c in study["causes"] if c["arm"] == arm
        ]  # fmt: skip
        table(f"By accuracy of the prompt's group: {arm}", ("right", "steps", "dH a step", "covariance", "correlation"),
              bins)  # fmt: skip


def flatness(study: dict[str, Any]) -> None:
    rows = [(f["run"], f"{f['slope_per_100_steps']:+.4f} +- {f['standard_error']:.4f}", "yes" if f["flat"] else "no")
            for f in study["flatness"]]  # fmt: skip
    table("Flat", ("run", "a 100 steps", "flat"), rows)


def main() -> None:
    study = json.loads((Path(sys.argv[1]) / "study.json").read_text(encoding="utf-8"))
    for part in (arms, pass_at_k, collapse, law, cause, flatness):
        part(study)


if __name__ == "__main__":
    main()
