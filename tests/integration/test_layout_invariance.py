"""The same three updates under every layout give the same numbers, in real gloo processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.layout_job import STEPS, Variant, run_variants
from tests.learner.tiny import save_tiny_model
from tests.ops.gloo import run_on_ranks

RELATIVE = 1e-5
"""fp32 sums in another order."""
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
                Variant("base", tied),
                Variant("base untied", untied),
                Variant("base one kv head", grouped),
                Variant("budget 1x", tied, max_tokens=250),
                Variant("recompute full", tied, recompute="full"),
                Variant("recompute selective", tied, recompute="selective"),
                Variant("replicated optimizer", tied, distributed_optimizer=False),
            ]
        ],
        2: [
            [
                Variant("tp2", tied, tp=2),
                Variant("tp2 sequence parallel", tied, tp=2, sequence_parallel=True, max_tokens=250),
                Variant("tp2 one kv head", grouped, tp=2),
            ],
            [Variant("pp2", tied, pp=2, max_tokens=250), Variant("pp2 untied", untied, pp=2)],
            [
                Variant("dp2", tied, max_tokens=250),
                Variant("dp2 replicated optimizer", tied, distributed_optimizer=False),
            ],
        ],
        4: [
            [
                Variant("tp2 pp2", tied, **four, max_tokens=250, export=str(folders["exports"] / "tied")),
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
    ("tp2", "base"),
    ("tp2 sequence parallel", "base"),
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
