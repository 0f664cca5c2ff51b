"""What can be refused is refused before anything is started or written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from pyrl import run_folder
from pyrl.config import ConfigError, RunConfig, parse_config
from pyrl.data.cursor import PromptCursor
from pyrl.data.prompts import fingerprint, load_prompts
from pyrl.data.tokenizer import load_tokenizer
from pyrl.learner import checkpoint_store as store
from pyrl.learner.parallel import destroy_parallel
from pyrl.quickstart.model import write_model
from pyrl.rollout import shared_folder
from pyrl.run_folder import locked
from pyrl.trainer import train
from tests.ops.gloo import run_on_ranks

PROMPTS = 6


class Started(Exception):
    """A server was about to be started."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("refusals") / "model", seed=0)


@pytest.fixture
def place(tmp_path: Path, model: Path) -> Path:
    """A folder with links to a model's files, and prompts."""
    (tmp_path / "model").mkdir()
    for file in model.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    write_prompts(tmp_path, PROMPTS)
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """Every command that was started. Servers do not come to life: the first one raises Started."""
    commands: list[list[str]] = []
    real = subprocess.Popen

    def popen(command: list[str], **options: Any) -> subprocess.Popen:
        commands.append(command)
        if any("vllm" in word for word in command):
            raise Started
        return real(command, **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    yield commands
    destroy_parallel()


def write_prompts(folder: Path, count: int) -> None:
    with (folder / "train.jsonl").open("w") as file:
        for i in range(count):
            prompt, truth = [{"role": "user", "content": f"{i} 2 3 :"}], {"ground_truth": "1"}
            row = {"data_source": "toy", "prompt": prompt, "reward_model": truth, "extra_info": {"index": i}}
            print(json.dumps(row), file=file)


def edit_line(folder: Path, number: int, old: str, new: str) -> None:
    lines = (folder / "train.jsonl").read_text().splitlines()
    assert old in lines[number]
    lines[number] = lines[number].replace(old, new)
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")


def reverse_lines(folder: Path) -> None:
    lines = (folder / "train.jsonl").read_text().splitlines()
    (folder / "train.jsonl").write_text("\n".join(reversed(lines)) + "\n")


def settings(place: Path, **sections: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "model": {"path": str(place / "model")},
        "data": {"path": str(place / "train.jsonl"), "template": "plain", "max_prompt_tokens": 8},
        "reward": {"task": "math"},
        "rollout": {"max_response_tokens": 8},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section if isinstance(section, dict) else section
    return parse_config(tree)


def save(place: Path, step: int, threads: int = 0, **changes: Any) -> Path:
    """A checkpoint of the run that `settings(place)` describes, without weights. `threads`: of its rank; 0: as here."""
    root, config = place / "run" / "checkpoints", settings(place).model_dump(mode="json")
    prompts = load_prompts(settings(place).data, load_tokenizer(place / "model"))
    cursor = PromptCursor(PROMPTS, seed=0, shuffle=True, fingerprint=fingerprint(prompts)).state_dict()
    counts = {"ranks": 1, "parallel.threads": [threads or torch.get_num_threads()], "rollout.threads": None}
    state = {"step": step, "gradient_step": step, "cursor": cursor, "config": config | changes, "part_counts": counts}
    writing = store.begin(root, step)
    store.write_synced(writing / store.TRAINER_STATE, store.encode_trainer_state(state))
    store.write_synced(writing / "weights.bin", b"w" * 100)
    files = {name: store.hash_file(writing / name) for name in (store.TRAINER_STATE, "weights.bin")}
    return store.publish(writing, root, store.Manifest(step, {}, files), keep_last=9)


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def edit_config(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(place: Path, edit: Callable[[dict], object]) -> None:
    path = place / "model" / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


NORM = "model.norm.weight"
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
MODELS: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "bf16 on a CPU": (lambda p: None, {"model": {"dtype": "bf16"}}, "model.dtype 'bf16' needs CUDA"),
    "a CUDA attention": (lambda p: None, {"model": {"attention": "torch_varlen"}}, "'torch_varlen' needs CUDA"),
    "a small padded vocabulary": (lambda p: None, {"model": {"padded_vocab_size": 31}}, "padded_vocab_size 31 is smal"),
    "a length": (lambda p: None, {"rollout": {"max_response_tokens": 57}},
                 r"max_prompt_tokens 8 \+ rollout.max_response_tokens 57 = 65 tokens exceed the 64 positions of model"),
    "too few ranks": (lambda p: None, {"parallel": {"tp": 2}}, "world size 1 is not divisible by parallel.tp 2"),
    "an architecture": (lambda p: edit_config(p / "model", architectures=["GPT2"]), {}, "'GPT2' is not supported"),
    "RoPE": (lambda p: edit_config(p / "model", rope_parameters=YARN), {}, "RoPE scaling 'yarn'"),
    "no tokenizer": (lambda p: [f.unlink() for f in (p / "model").glob("tokenizer*")], {}, "holds no tokenizer"),
    "a missing tensor": (lambda p: edit_weights(p, lambda t: t.pop(NORM)), {}, f"holds no tensor '{NORM}'"),
    "a tensor's shape": (lambda p: edit_weights(p, lambda t: t.update({NORM: t[NORM][1:]})), {}, r"is \(95,\), conf"),
    "a cut file": (lambda p: os.truncate(p / "model" / "model.safetensors", 9000), {}, "cannot be read as safetensors"),
    "no weights": (lambda p: (p / "model" / "model.safetensors").unlink(), {}, r"holds no \*\.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_built(place: Path, started: list, case: str) -> None:
    prepare, sections, message = MODELS[case]
    prepare(place)
    before = everything(place)
    with pytest.raises(ConfigError, match=message):
        train(settings(place, **sections), place / "run")
    assert started == [] and everything(place) == before


RESUMES: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "other settings": (lambda p: None, {"optimizer": {"lr": 0.5}}, r"other settings of optimizer\.lr: "),
    "more prompts": (lambda p: write_prompts(p, PROMPTS + 1), {}, "num_prompts is 7 now and was 6"),
    "other threads": (lambda p: save(p, 2, threads=99, deterministic=True), {"deterministic": True},
                      "written with 99 CPU threads a rank, this run has .*set parallel.threads"),
    "other prompts": (lambda p: edit_line(p, 0, '"1"', '"2"'), {}, "content or the order of the prompts in data.path"),
    "another order": (lambda p: reverse_lines(p), {}, "content or the order of the prompts in data.path"),
    "no such checkpoint": (lambda p: (p / "run").rename(p / "aside"), {"checkpoint": {"resume": "nowhere"}}, "nowhere"),
    "a missing file": (lambda p: (p / "run/checkpoints/step_000002/weights.bin").unlink(), {}, "weights.bin is miss"),
    "a cut file": (lambda p: os.truncate(p / "run/checkpoints/step_000002/weights.bin", 9), {}, "has 9 bytes"),
    "another run's checkpoint": (lambda p: (p / "run/checkpoints/step_000002").rename(p / "step_000002"),
                                 {"checkpoint": {"resume": "{place}/step_000002"}}, "holds another run"),
    "a folder to start anew in": (lambda p: None, {"checkpoint": {"resume": "never"}}, "holds another run"),
}  # fmt: skip


@pytest.mark.parametrize("case", RESUMES)
def test_a_resume_that_cannot_be(place: Path, started: list, case: str) -> None:
    prepare, sections, message = RESUMES[case]
    save(place, 2)
    (place / "run" / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    prepare(place)
    sections = json.loads(json.dumps(sections).replace("{place}", str(place)))
    before = everything(place)
    with pytest.raises(ConfigError, match=message):
        train(settings(place, **sections), place / "run")
    assert started == [] and everything(place) == before


@pytest.mark.parametrize("task", ["chess", "reasoning_gym:nonsense_task"])
def test_an_unknown_reward(place: Path, started: list, task: str) -> None:
    before = everything(place)
    with pytest.raises(ConfigError, match=rf"reward\.task '{task}' is unknown"):
        train(settings(place, reward={"task": task}), place / "run")
    assert everything(place) == before
    assert not any("vllm" in word for command in started for word in command)
    assert graders() == []


def graders() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "pyrl.reward.worker" in " ".join(p.cmdline())]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_ground_truth_that_the_grader_cannot_read(place: Path, started: list, resumed: bool) -> None:
    edit_line(place, 4, '"1"', '"("')
    if resumed:
        save(place, 2)
    before = everything(place)
    with pytest.raises(ConfigError, match=r"task math cannot read .* of 1 of 6 questions, the first that of toy/4"):
        train(settings(place), place / "run")
    assert everything(place) == before
    assert not any("vllm" in word for command in started for word in command)
    assert graders() == []


def test_no_room_in_shared_memory(place: Path, started: list, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(place)
    monkeypatch.setattr(shared_folder, "SHARED_MEMORY", place / "absent")
    with pytest.raises(ConfigError, match=r"is not there or cannot be written, and rollout\.transport shm"):
        train(settings(place), place / "run")
    assert started == [] and everything(place) == before


def test_a_folder_in_use(place: Path, started: list) -> None:
    with locked(place / "run"):
        before = everything(place)
        with pytest.raises(ConfigError, match=rf"run is in use by process {os.getpid()} on "):
            train(settings(place), place / "run")
        assert started == [] and everything(place) == before


def test_a_run_that_cannot_be_refused_starts_graders_then_servers(place: Path, started: list) -> None:
    """The control of the tests above: what they patch is what a run uses."""
    save(place, 2)
    with pytest.raises(Started):
        train(settings(place), place / "run")
    assert ["pyrl.reward.worker" in command for command in started] == [True, False]
    assert (place / "run" / "run.lock").exists() and graders() == []


ON_TWO_RANKS = [
    ({"parallel": {"tp": 2}, "model": {"path": "odd"}}, "parallel.tp 2 does not divide the model's attention heads 3"),
    ({"parallel": {"pp": 2}, "model": {"path": "odd"}}, "parallel.pp 2 does not divide the model's 3 layers"),
    ({"deterministic": True}, "2 data-parallel replicas share 1 servers"),
    ({"data": {"path": "/nowhere"}}, "/nowhere does not exist"),  # rank 1's alone
    ({}, "is not the one that rank 0 has locked"),  # each rank with a disk of its own
]


def _refusals(place: str) -> list[str]:
    """What `train` says on this rank of each of ON_TWO_RANKS, in folder `place`."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    os.chdir(place)
    texts = []
    for sections, _ in ON_TWO_RANKS:
        own = {} if "data" in sections and dist.get_rank() == 0 else sections
        if not sections:
            os.chdir(tempfile.mkdtemp(dir=Path(place).parent))
            run_folder.SHARED_SECONDS = 0.5
        try:
            train(settings(Path(place), **own), Path("run"))
        except ConfigError as error:
            texts.append(str(error))
        parallel_state.destroy_model_parallel()
    return texts


def test_both_ranks_refuse_what_one_cannot_do(place: Path) -> None:
    shutil.copytree(place / "model", place / "odd")
    edit_config(
        place / "odd",
        num_attention_heads=3,
        num_key_value_heads=3,
        num_hidden_layers=3,
        layer_types=["full_attention"] * 3,
    )
    before = everything(place)
    told = run_on_ranks(2, _refusals, str(place), deadline=200)
    assert told[0] == told[1] and len(told[0]) == len(ON_TWO_RANKS)
    for text, (_, message) in zip(told[0], ON_TWO_RANKS, strict=True):
        assert message in text
    assert everything(place) == before
