"""Which tokens of the quickstart's task have a large covariance, over a run, and what becomes of the gates.

    python scripts/ring_walk_tokens.py TABLE.csv PICTURE.png RUN [RUN ...]

For each checkpoint of a run of `configs/study/paper.yaml` and the policy it started from, samples 64 held-out prompts x
8 at temperature 1 and writes a row of CSV: the mean covariance of log-prob and advantage over *free* tokens (the first
three moves: many would do) and over *erring* tokens (a place that is not the sum); of the tokens with a covariance in
Clip-Cov's band the share that is of each kind; and the number of gates that the run's own validation then found.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from pyrl.algorithms.advantage import grpo
from pyrl.analysis.plots import RUN_COLOURS, STYLE
from pyrl.config import RunConfig
from pyrl.data.prompts import load_prompts
from pyrl.learner.export import export_checkpoint
from pyrl.quickstart.summary import gates_found
from pyrl.reward.ring_walk import grade
from pyrl.telemetry.jsonl import read_jsonl
from pyrl.types import Prompt

PROMPTS, SAMPLES, BAND, SEED = 64, 8, (1.0, 5.0), 0
PLACES, FREE_TOKENS = 24, 6
"""Of the standard task; the last move is given by the goal."""
COLUMNS = ("run", "step", "reward", "entropy", "free_covariance", "erring_covariance", "free_tokens", "erring_tokens",
           "in_band", "in_band_free", "in_band_erring", "gates_found")  # fmt: skip


@torch.no_grad()
def sample(model: LlamaForCausalLM, prompts: list[Prompt], length: int) -> tuple[torch.Tensor, ...]:
    """(tokens, log-probs, entropies) [responses, length] and a mask of what precedes and includes the end."""
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.tensor([list(prompt.token_ids) for prompt in prompts for _ in range(SAMPLES)])
    logprobs, entropies = [], []
    for _ in range(length):
        log_probabilities = model(tokens).logits[:, -1].float().log_softmax(-1)
        chosen = torch.multinomial(log_probabilities.exp(), 1, generator=generator)
        logprobs.append(log_probabilities.gather(1, chosen)[:, 0])
        entropies.append(-(log_probabilities.exp() * log_probabilities).sum(-1))
        tokens = torch.cat([tokens, chosen], 1)
    response = tokens[:, -length:]
    ended = (response == model.config.eos_token_id).cumsum(1)
    mask = (ended == 0) | ((ended == 1) & (response == model.config.eos_token_id))
    return response, torch.stack(logprobs, 1), torch.stack(entropies, 1), mask


def kinds(words: list[str], start: int) -> list[str]:
    """`free`, `erring` or `other` of each token of a response: move, place, move, place, ..., end."""
    found, place = ["other"] * len(words), start
    for at in range(0, len(words) - 1, 2):
        move, stated = words[at], words[at + 1]
        if not (move.startswith("+") and stated.isdigit()):
            break
        if at < FREE_TOKENS:
            found[at] = "free"
        if (place + int(move)) % PLACES != int(stated):
            found[at + 1] = "erring"
        place = int(stated)
    return found


def measure(policy: Path, config: RunConfig) -> dict[str, float]:
    """Of one policy, a Hugging Face folder; the columns from `reward` on."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(policy)
    prompts = load_prompts(config.data, tokenizer, validation=True)[:PROMPTS]
    length = config.rollout.max_response_tokens
    response, logprobs, entropies, mask = sample(LlamaForCausalLM.from_pretrained(policy), prompts, length)
    words = [[tokenizer.decode([token]) for token in row] for row in response.tolist()]
    texts = tokenizer.batch_decode(response, skip_special_tokens=True)
    truths = [prompt.ground_truth for prompt in prompts for _ in range(SAMPLES)]
    rewards = [float(grade(text, truth)[0] == "right") for text, truth in zip(texts, truths, strict=True)]
    groups = [grpo(rewards[i : i + SAMPLES]) for i in range(0, len(rewards), SAMPLES)]
    advantages = torch.tensor([a for group in groups for a in group])[:, None].expand_as(logprobs)
    x, a = logprobs[mask], advantages[mask]
    covariance = torch.zeros_like(logprobs)
    covariance[mask] = (x - x.mean()) * (a - a.mean())
    starts = [json.loads(truth)["start"] for truth in truths]
    of_kind = [kinds(row, start) for row, start in zip(words, starts, strict=True)]
    free, erring = (torch.tensor([[k == kind for k in row] for row in of_kind]) & mask for kind in ("free", "erring"))
    band = (covariance > BAND[0]) & (covariance < BAND[1])
    in_band = int(band.sum())
    return {
        "reward": sum(rewards) / len(rewards),
        "entropy": float(entropies[mask].mean()),
        "free_covariance": float(covariance[free].mean()),
        "erring_covariance": float(covariance[erring].mean()),
        "free_tokens": int(free.sum()),
        "erring_tokens": int(erring.sum()),
        "in_band": in_band,
        "in_band_free": float((band & free).sum() / max(1, in_band)),
        "in_band_erring": float((band & erring).sum() / max(1, in_band)),
    }


def gates_by_step(run: Path) -> dict[int, int]:
    rows: dict[int, list[dict]] = {}
    for row in read_jsonl(run / "validation.jsonl"):
        rows.setdefault(row["step"], []).append(row)
    return {step: sum(gates_found(questions).values()) for step, questions in rows.items()}


def follow(run: Path) -> list[dict[str, Any]]:
    """The rows of one run."""
    config = RunConfig.model_validate(yaml.safe_load((run / "config.yaml").read_text()))
    gates, rows = gates_by_step(run), []
    with tempfile.TemporaryDirectory() as folder:
        policies = {0: config.model.path}
        for checkpoint in sorted((run / "checkpoints").glob("step_*")):
            step = int(checkpoint.name.removeprefix("step_"))
            policies[step] = export_checkpoint(checkpoint, Path(folder) / checkpoint.name)
        for step, policy in policies.items():
            named = {"run": f"{run.parent.name}/{run.name}", "step": step, "gates_found": gates[step]}
            rows.append(named | measure(policy, config))
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Covariance of both kinds, their shares of the band, and the gates, over the steps."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12.5, 3.4), layout="constrained", facecolor="white")
        panels = figure.subplots(1, 3)
        for number, run in enumerate(dict.fromkeys(row["run"] for row in rows)):
            own = [row for row in rows if row["run"] == run]
            steps, colour = [row["step"] for row in own], RUN_COLOURS[number]
            for name, dash in (("free", "-"), ("erring", ":")):
                values = [row[f"{name}_covariance"] for row in own], [row[f"in_band_{name}"] for row in own]
                for axes, series in zip(panels, values, strict=False):
                    axes.plot(steps, series, dash, color=colour, label=f"{run.partition('/')[0]}, {name} tokens")
            panels[2].plot(steps, [row["gates_found"] for row in own], color=colour, drawstyle="steps-post")
        titles = ("Mean covariance, nats", "Share of Clip-Cov's band", "Gates found")
        for axes, title in zip(panels, titles, strict=True):
            axes.set_title(title, loc="left", pad=8)
            axes.set_xlabel("step")
        panels[0].legend(frameon=False, fontsize=9)
        FigureCanvasAgg(figure).print_png(path)


def main() -> None:
    table, picture, *runs = map(Path, sys.argv[1:])
    rows = [row for run in runs for row in follow(run)]
    with table.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        out.writeheader()
        for row in rows:
            numbers = {name: f"{value:.4g}" for name, value in row.items() if isinstance(value, float)}
            out.writerow(row | numbers)
    draw(rows, picture)


if __name__ == "__main__":
    main()
