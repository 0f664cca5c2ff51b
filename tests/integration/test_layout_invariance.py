"""The same three updates under every layout give the same numbers, in real gloo processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pyrl.algorithms.advantage import grpo
from pyrl.ops import select_top
from pyrl.ops.counter import mix
from pyrl.stages.improve import SELECTED_PER_STEP
from pyrl.stages.selected_sample import draw_seed
from tests.integration.improve_job import METHODS, UPDATES, Choice, make_groups
from tests.integration.improve_job import STEPS as ROLLOUTS
from tests.integration.layout_job import STEPS, Variant, run_variants
from tests.learner.tiny import save_tiny_model
from tests.ops.gloo import run_on_ranks

RELATIVE = 1e-5
"""fp32 sums in another order."""
MARGIN = 1e-5
"""A token may change sides where its covariance is nearer than this, times max(1, |edge|), to what decides on it."""
Results = dict[str, list[dict[str, Any]]]
"""Variant -> what each rank returned."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("layouts")
    models = {"tied": ("qwen2", True), "untied": ("llama", False)}
    for name, (family, tied) in models.items():
        save_tiny_model(family, root / name, tied=tied)
    save_tiny_model("llama", root / "one_kv_head", num_key_value_heads=1)
    return {name: root / name for name in (*models, "one_kv_head", "exports")}


@pytest.fixture(scope="module")
def results(folders: dict[str, Path]) -> Results:
    """Every variant, run once; variants of one job share processes."""
    tied, untied, grouped = (str(folders[n]) for n in ("tied", "untied", "one_kv_head"))
    four = {"tp": 2, "pp": 2}
    jobs = {
        1: [
            [
                Variant("base", tied, improve=True),
                Variant("base untied", untied),
                Variant("base one kv head", grouped),
                Variant("budget 1x", tied, max_tokens=250, improve=True),
                Variant("recompute full", tied, recompute="full"),
                Variant("recompute selective", tied, recompute="selective"),
                Variant("replicated optimizer", tied, distributed_optimizer=False),
                Variant("fused head", tied, lm_head="fused"),
            ]
        ],
        2: [
            [
                Variant("tp2", tied, tp=2, improve=True),
                Variant("tp2 sequence parallel", tied, tp=2, sequence_parallel=True, max_tokens=250),
                Variant("tp2 fused head", tied, tp=2, sequence_parallel=True, max_tokens=250, lm_head="fused"),
                Variant("tp2 one kv head", grouped, tp=2),
            ],
            [Variant("pp2", tied, pp=2, max_tokens=250, improve=True), Variant("pp2 untied", untied, pp=2)],
            [
                Variant("dp2", tied, max_tokens=250, improve=True),
                Variant("dp2 replicated optimizer", tied, distributed_optimizer=False, improve=True),
            ],
        ],
        4: [
            [
                Variant("tp2 pp2", tied, **four, max_tokens=250, improve=True, export=str(folders["exports"] / "tied")),
                Variant("tp2 pp2 untied", untied, **four, export=str(folders["exports"] / "untied")),
            ]
        ],
    }
    found: Results = {}
    for world, groups in jobs.items():
        for variants in groups:
            ranks = run_on_ranks(world, run_variants, variants, deadline=240.0)
            found |= {v.name: [rank[v.name] for rank in ranks] for v in variants}
    return found


PAIRS = [
    ("budget 1x", "base"),
    ("recompute full", "base"),
    ("recompute selective", "base"),
    ("replicated optimizer", "base"),
    ("fused head", "base"),
    ("tp2", "base"),
    ("tp2 sequence parallel", "base"),
    ("tp2 fused head", "base"),
    ("tp2 one kv head", "base one kv head"),
    ("pp2", "base"),
    ("pp2 untied", "base untied"),
    ("dp2", "base"),
    ("dp2 replicated optimizer", "base"),
    ("tp2 pp2", "base"),
    ("tp2 pp2 untied", "base untied"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reference"), PAIRS)
def test_numbers_do_not_depend_on_the_layout(results: Results, name: str, reference: str) -> None:
    (base,) = results[reference]
    for rank in results[name]:
        for got, wanted in zip(rank["steps"], base["steps"], strict=True):
            assert got["entropy"] == pytest.approx(wanted["entropy"], rel=RELATIVE)
            assert got["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=RELATIVE)
            assert abs(got["loss"] - wanted["loss"]) <= RELATIVE * wanted["loss_abs"]
        assert rank["parameters"].keys() == base["parameters"].keys()
        for tensor, wanted in base["parameters"].items():
            error = (rank["parameters"][tensor] - wanted).norm() / wanted.norm()
            assert error <= RELATIVE, f"{tensor}: relative error {error}"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reference"), PAIRS)
def test_scores_do_not_depend_on_the_layout(results: Results, name: str, reference: str) -> None:
    wanted = results[reference][0]["scores"]
    replicas: dict[int, dict[int, tuple[float, float]]] = {}
    for rank in results[name]:
        replica = replicas.setdefault(rank["place"][0], rank["scores"])
        assert rank["scores"] == replica, "ranks of one replica disagree"
    union = {uid: value for scores in replicas.values() for uid, value in scores.items()}
    assert union.keys() == wanted.keys()
    assert sum(map(len, replicas.values())) == len(wanted), "a token was scored by two replicas"
    got, base = (torch.tensor([scores[uid] for uid in sorted(wanted)]) for scores in (union, wanted))
    torch.testing.assert_close(got, base, rtol=RELATIVE, atol=1e-5)


@pytest.mark.slow
def test_the_updates_did_something_and_layouts_did_differ(results: Results, folders: dict[str, Path]) -> None:
    before = load_file(folders["tied"] / "model.safetensors")
    (base,) = results["base"]
    for name, tensor in base["parameters"].items():
        moved = (tensor - before[name]).norm() / before[name].norm()
        assert moved > 100 * RELATIVE, f"{name} moved by {moved} only"
    counts = {name: results[name][0]["steps"][0]["micro_batches"] for name in ("base", "budget 1x", "dp2", "pp2")}
    assert counts["base"] == 1
    assert counts["budget 1x"] >= 4
    assert counts["pp2"] == counts["budget 1x"]
    assert counts["dp2"] >= 2
    assert len(base["steps"]) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pp2", "tp2 pp2"])
def test_both_copies_of_tied_embeddings_stay_equal(results: Results, name: str) -> None:
    by_place = {rank["place"]: rank["copies"] for rank in results[name]}
    tp = 1 + max(place[2] for place in by_place)
    for tp_rank in range(tp):
        first = by_place[0, 0, tp_rank]["embedding.word_embeddings.weight"]
        last = by_place[0, 1, tp_rank]["output_layer.weight"]
        assert torch.equal(first, last)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tied", "untied"])
def test_export_from_four_shards_returns_the_same_bits(results: Results, folders: dict[str, Path], model: str) -> None:
    assert results, "the jobs wrote the exports"
    exported = load_file(folders["exports"] / model / "model.safetensors")
    loaded = load_file(folders[model] / "model.safetensors")
    assert exported.keys() == loaded.keys()
    for name, tensor in loaded.items():
        assert torch.equal(exported[name], tensor), name


IMPROVED = ["budget 1x", "tp2", "pp2", "dp2", "dp2 replicated optimizer", "tp2 pp2"]
"""Those that trained with Clip-Cov and KL-Cov; with dp2 the choice is made ahead of the loss, and then inside it."""


def choices(ranks: list[dict[str, Any]], method: str) -> list[Choice]:
    """Of each update, over all replicas. Where a mini-batch is one micro-batch, only the last stage chooses."""
    last_stage = max(rank["place"][1] for rank in ranks)
    replicas: dict[int, list[Choice]] = {}
    for rank in ranks:
        dp, pp, _ = rank["place"]
        if pp == last_stage:
            found = rank["methods"][method]["choices"]
            assert replicas.setdefault(dp, found) == found, "ranks of one replica disagree"
    updates = list(zip(*replicas.values(), strict=True))
    assert len(updates) == ROLLOUTS * UPDATES
    return [
        Choice({u: c for p in parts for u, c in p.covariance.items()}, frozenset().union(*(p.chosen for p in parts)))
        for parts in updates
    ]


def edges(method: str, choice: Choice) -> tuple[float, ...]:
    """The covariances at which a token's fate turns: KL-Cov's threshold, Clip-Cov's band."""
    if method == "kl_cov":
        return (min(choice.covariance[uid] for uid in choice.chosen),)
    return METHODS[method]["clip_cov_lb"], METHODS[method]["clip_cov_ub"]


def beyond_the_margin(method: str, base: Choice, other: Choice) -> list[int]:
    """Tokens that one of the two chose and the other did not, although their covariance is clear of every edge."""
    different = base.chosen ^ other.chosen
    clear = lambda cov, edge: abs(cov - edge) > MARGIN * max(1.0, abs(edge))  # noqa: E731
    return sorted(u for u in different if all(clear(base.covariance[u], edge) for edge in edges(method, base)))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", IMPROVED)
def test_choices_do_not_depend_on_the_layout(results: Results, name: str, method: str) -> None:
    wanted, got = choices(results["base"], method), choices(results[name], method)
    for base, other in zip(wanted, got, strict=True):
        assert len(base.chosen) == len(other.chosen) == int(0.05 * len(base.covariance)) >= 10
        assert other.covariance.keys() == base.covariance.keys()
        for uid, covariance in base.covariance.items():
            assert abs(other.covariance[uid] - covariance) <= MARGIN * max(1.0, abs(covariance))
        wrong = beyond_the_margin(method, base, other)
        assert not wrong, f"{len(wrong)} of {len(base.chosen ^ other.chosen)} differences are not at an edge: {wrong}"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", IMPROVED)
def test_training_with_choices_does_not_depend_on_the_layout(results: Results, name: str, method: str) -> None:
    base = results["base"][0]["methods"][method]
    for rank in (r["methods"][method] for r in results[name]):
        for step, (got, wanted) in enumerate(zip(rank["records"], base["records"], strict=True), start=1):
            assert sum(wanted["selected_tokens_updates"]) == wanted["selected_tokens"] >= 30
            assert got.keys() == wanted.keys()
            scales = {  # of sums and differences that may cancel
                "loss": mean_absolute_advantage(step),  # of a token at ratio 1
                "cov_": mean_absolute_advantage(step),  # times the nat by which log-probs differ
                "entropy_change": wanted["entropy"],
            }
            for field, value in wanted.items():
                scale = next((s for name, s in scales.items() if field.startswith(name)), None)
                margin = {"rel": RELATIVE} if scale is None else {"abs": RELATIVE * scale, "rel": 0}
                assert got[field] == (None if value is None else pytest.approx(value, **margin)), field
        for tensor, wanted in base["parameters"].items():
            error = (rank["parameters"][tensor] - wanted).norm() / wanted.norm()
            assert error <= RELATIVE, f"{tensor}: relative error {error}"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["base", *IMPROVED])
def test_the_chosen_tokens_that_are_shown_do_not_depend_on_the_layout(results: Results, name: str, method: str) -> None:
    """Those of smallest key among all that were chosen, gathered on rank 0."""
    (base,) = results["base"]
    first, *others = (rank["methods"][method]["shown"] for rank in results[name])
    assert all(tokens == [] for shown in others for tokens in shown)
    updates = iter(choices(results[name], method))
    for step, tokens in enumerate(first, start=1):
        chosen = [uid for _ in range(UPDATES) for uid in next(updates).chosen]
        seed = draw_seed(0, step)
        assert [token.uid for token in tokens] == sorted(chosen, key=lambda uid: mix(seed, uid))[:SELECTED_PER_STEP]
        same = {token.uid: token for token in base["methods"][method]["shown"][step - 1]}
        both = [(token, same[token.uid]) for token in tokens if token.uid in same]
        assert len(both) >= SELECTED_PER_STEP - 1
        for token, wanted in both:
            assert (token.update, token.token_id, token.prompt, token.before) == (
                wanted.update, wanted.token_id, wanted.prompt, wanted.before)  # fmt: skip
            assert token.logprob == pytest.approx(wanted.logprob, rel=RELATIVE, abs=1e-5)
            assert token.covariance == pytest.approx(wanted.covariance, abs=MARGIN * max(1.0, abs(wanted.covariance)))


def mean_absolute_advantage(step: int) -> float:
    pairs = [
        (abs(advantage), len(completion.token_ids))
        for group in make_groups(step)
        for advantage, completion in zip(grpo(group.rewards), group.completions, strict=True)
        if advantage is not None
    ]
    return sum(a * n for a, n in pairs) / sum(n for _, n in pairs)


@pytest.mark.slow
def test_a_rank_that_ranks_its_own_tokens_alone_is_found(results: Results) -> None:
    """What `beyond_the_margin` is worth: every update of such a selection has tokens that are not at the threshold."""
    ranks = [rank["methods"]["kl_cov"]["choices"] for rank in results["dp2"]]
    for base, *parts in zip(choices(results["base"], "kl_cov"), *ranks, strict=True):
        alone: frozenset[int] = frozenset()
        for part in parts:
            uids, covariance = torch.tensor(list(part.covariance)), torch.tensor(list(part.covariance.values()))
            chosen = select_top(covariance, torch.ones_like(uids, dtype=torch.bool), 0.05, token_uids=uids)
            alone |= frozenset(uids[chosen].tolist())
        assert beyond_the_margin("kl_cov", base, Choice(base.covariance, alone))


def test_the_margin_is_narrow() -> None:
    covariance = {1: 2.0, 2: 1.0, 3: 1.0 - 5e-6, 4: 1.0 - 5e-5}
    chosen = lambda *uids: Choice(covariance, frozenset(uids))  # noqa: E731
    assert beyond_the_margin("kl_cov", chosen(1, 2), chosen(1, 3)) == []
    assert beyond_the_margin("kl_cov", chosen(1, 2), chosen(1, 4)) == [4]
    assert beyond_the_margin("kl_cov", chosen(1, 2), chosen(3, 2)) == [1]
    assert beyond_the_margin("clip_cov", chosen(1), chosen(2)) == [1, 2]
