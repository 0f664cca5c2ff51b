"""Demonstrations as the learner reads them, and the loss of the supervised phase."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyrl.config import ConfigError, ParallelConfig
from pyrl.data.templates import encode
from pyrl.learner.learner import Learner
from pyrl.learner.parallel import destroy_parallel, init_parallel
from pyrl.stages.supervised import fine_tune, load_demonstrations
from tests.data.conftest import byte_tokenizer
from tests.learner.tiny import hf_logprobs, random_sequences, run_config, save_tiny_model


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("template", ["plain", "r1_zero", "chat"])
def test_prompts_are_tokenized_as_in_reinforcement_learning(tmp_path: Path, template: str) -> None:
    tokenizer = byte_tokenizer(bos=True)
    tokenizer.eos_token = "!"
    path = write(tmp_path / "d.jsonl", [{"prompt": "1+1=", "response": "2"}, {"prompt": "a", "response": "bc"}])
    first, second = load_demonstrations(path, tokenizer, template=template)
    (wanted,) = encode([[{"role": "user", "content": "1+1="}]], template, tokenizer)
    assert first.prompt_ids == wanted and (wanted[0] == tokenizer.bos_token_id) == (template != "chat")
    assert tokenizer.decode(first.response_ids) == "2!" and tokenizer.decode(second.response_ids) == "bc!"
    assert [first.sample_index, second.sample_index] == [0, 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"prompt": "a"}', "line 2: 'response' must be a text that is not empty"),
        ('{"prompt": "", "response": "b"}', "line 2: 'prompt' must be a text that is not empty"),
        ("[1]", "line 2: 'prompt' must be a text"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=message):
        load_demonstrations(path, byte_tokenizer(), template="plain")
    with pytest.raises(ConfigError, match="do not exist"):
        load_demonstrations(tmp_path / "none", byte_tokenizer(), template="plain")


def test_the_loss_is_the_mean_negative_logprob_and_falls(tmp_path: Path) -> None:
    model = save_tiny_model("qwen2", tmp_path)
    demonstrations = random_sequences(7)
    logprobs = [value for s in demonstrations for value in hf_logprobs(model, s)[0].tolist()]
    parallel = init_parallel(ParallelConfig())
    try:
        learner = Learner(run_config(tmp_path, optimizer={"lr": 1e-3}), parallel)
        losses: list[float] = []
        last = fine_tune(
            learner, parallel, demonstrations, steps=4, batch_size=7, max_tokens=100, seed=0,
            on_step=lambda step, loss: losses.append(loss),
        )  # fmt: skip
    finally:
        destroy_parallel()
    assert losses[0] == pytest.approx(-sum(logprobs) / len(logprobs), rel=1e-5)
    assert losses[-1] == last < losses[0] - 0.1
