"""Questions of a benchmark: what counts as one, what the model reads, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from pyrl.config import ConfigError
from pyrl.evaluation import published
from pyrl.evaluation.benchmarks import load_benchmarks
from pyrl.evaluation.config import EvaluationConfig, load_evaluation
from pyrl.quickstart.model import build_tokenizer

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "eval"
DATA = os.environ.get("PYRL_DATA_DIR")
needs_data = pytest.mark.skipif(not DATA, reason="PYRL_DATA_DIR names no folder with the benchmark files")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    found = build_tokenizer()
    found.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    return found


def row(index: int, text: str = "1+1", truth: str = "2", **changes: Any) -> dict[str, Any]:
    whole = {
        "data_source": "set",
        "prompt": [{"role": "user", "content": text}],
        "reward_model": {"ground_truth": truth},
        "extra_info": {"index": index},
    }
    return {key: value for key, value in (whole | changes).items() if value is not None}


@contextmanager
def hub(files: dict[str, bytes]) -> Iterator[str]:
    """Address of a server that answers as the hub does: a file with its commit and digest, else 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(self.path)
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            if content is not None:
                self.send_header("X-Repo-Commit", "c" * 40)
                self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def config(path: Path, rows: list[dict[str, Any]], **benchmark: Any) -> EvaluationConfig:
    (path / "set.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return EvaluationConfig(
        model=path, data_dir=path, benchmarks={"set": {"source": "set.jsonl", "template": "plain"} | benchmark}
    )


@needs_data
def test_repeated_rows_of_the_published_files_are_one_question(tokenizer: PreTrainedTokenizerBase) -> None:
    found = load_benchmarks(load_evaluation(CONFIGS / "at_hand.yaml", ["model=m"]), tokenizer)
    counts = {name: sum(q.benchmark == name for q in found) for name in ("aime24", "aime25", "amc23", "math500")}
    assert counts == {"aime24": 30, "aime25": 30, "amc23": 40, "math500": 500}
    assert all("Answer:" not in q.prompt and q.prompt.endswith("within \\boxed{}.") for q in found)
    assert len({(q.benchmark, q.id) for q in found}) == len(found)


def test_the_papers_config_is_its_protocol() -> None:
    """arXiv 2505.22617, section 4.3 and Table 2; samples x questions reproduce the rows behind its average."""
    config = load_evaluation(CONFIGS / "paper.yaml", ["model=m"])
    for benchmark in config.benchmarks.values():
        sampled = benchmark.column in ("AIME24", "AIME25", "AMC")
        assert (benchmark.samples, benchmark.temperature) == ((32, 0.6) if sampled else (1, 0.0))
        assert (benchmark.template, benchmark.grader) == ("r1_zero", "math:paper")
        assert (benchmark.max_tokens, benchmark.top_p, benchmark.instruction) == (8192, 1.0, "boxed")
        settings = published.settings(benchmark.column)  # by which scores are called comparable
        assert settings == benchmark.model_dump(include=set(settings))
    rows = {b.column: b.samples * (b.expected_rows or 0) for b in config.benchmarks.values()}
    assert rows == published.ROWS


@needs_data
def test_sets_that_are_not_at_hand_are_all_named_with_their_rows(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError) as refused:
        load_benchmarks(load_evaluation(CONFIGS / "paper.yaml", ["model=m"]), tokenizer)
    text = str(refused.value)
    assert all(said in text for said in ("omni_math (2821 rows)", "olympiad_bench (675 rows)", "minerva (272 rows)"))
    assert "amc (83 rows" in text and "benchmarks.amc.source=FILE" in text
    assert "only=[aime24,aime25,math500]" in text
    found = load_benchmarks(load_evaluation(CONFIGS / "paper.yaml", ["model=m", "only=[aime25]"]), tokenizer)
    assert {q.benchmark for q in found} == {"aime25"} and len(found) == 30


def test_amc23_is_not_called_the_papers_amc() -> None:
    amc = load_evaluation(CONFIGS / "at_hand.yaml", ["model=m"]).benchmarks["amc23"]
    assert amc.column is None and "not the paper's AMC (83)" in amc.note


def test_equal_rows_are_one_question_and_ids_with_two_contents_name_both_rows(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert len(load_benchmarks(config(tmp_path, [row(0), row(1), row(2, "1+2", "3")]), tokenizer)) == 2
    for other in (row(0, "1+2"), row(0, truth="3")):
        with pytest.raises(ConfigError, match=r"line 3.*'set/0'.*line 1"):
            load_benchmarks(config(tmp_path, [row(0), row(1, "5+5", "10"), other]), tokenizer)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no row"),
        ([row(0, prompt=None)], r"line 1: field prompt"),
        ([row(0, reward_model=None)], r"line 1: field reward_model"),
        ([row(0, truth="")], r"line 1: field reward_model.ground_truth"),
    ],
)
def test_bad_files_are_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_benchmarks(config(tmp_path, rows), tokenizer)


def test_another_number_of_questions_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match=r"benchmarks\.set: set\.jsonl holds 1 questions, expected_rows is 83"):
        load_benchmarks(config(tmp_path, [row(0)], expected_rows=83), tokenizer)


def test_an_instruction_is_rewritten_on_request(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [row(0, "Say Answer: x.\n\n1+1")]
    assert load_benchmarks(config(tmp_path, rows), tokenizer)[0].prompt == "Say Answer: x.\n\n1+1"
    (boxed,) = load_benchmarks(config(tmp_path, rows, strip=["Say Answer: x."], instruction="boxed"), tokenizer)
    assert boxed.prompt == "1+1\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    (asked,) = load_benchmarks(config(tmp_path, rows, strip=["Say Answer: x."], instruction="answer"), tokenizer)
    assert asked.prompt.startswith("Solve the following") and "\n\n1+1\n\n" in asked.prompt
    with pytest.raises(ConfigError, match=r"strip: the prompt does not hold 'Say Result'"):
        load_benchmarks(config(tmp_path, rows, strip=["Say Result"]), tokenizer)


def test_braces_of_a_question_are_no_placeholders(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (found,) = load_benchmarks(config(tmp_path, [row(0, r"\frac{1}{2}{question}")], instruction="boxed"), tokenizer)
    assert found.prompt.startswith(r"\frac{1}{2}{question}")


def test_templates_decide_what_the_model_reads(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [row(0, "3 +1")]
    plain, chat, r1_zero = (
        load_benchmarks(config(tmp_path, rows, template=t), tokenizer)[0] for t in ("plain", "chat", "r1_zero")
    )
    assert tokenizer.decode(plain.token_ids) == "3 +1" and plain.prompt == chat.prompt == r1_zero.prompt
    assert len({q.prompt_hash for q in (plain, chat, r1_zero)}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "absent.parquet"}, "absent.parquet does not exist"),
        ({"source": "hub:owner/name"}, "want hub:OWNER/NAME/FILE"),
        ({"source": "hub:owner/name@/a.jsonl"}, "want hub:OWNER/NAME/FILE"),
        ({"source": "hub:owner@main/name/a.jsonl"}, "want hub:OWNER/NAME/FILE"),
    ],
)
def test_sources_that_cannot_be_read(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_benchmarks(config(tmp_path, [row(0)], **change), tokenizer)


@pytest.mark.parametrize(("address", "revision"), [("hub:maker/set", "main"), ("hub:maker/set@v2", "v2")])
def test_a_set_of_the_hub_comes_through_its_own_client(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, address: str, revision: str
) -> None:
    """The real client, against a server with the hub's addresses that has one file at one revision."""
    file = '{"problem": "1+1?", "answer": 2.0}\n'
    with hub({f"/datasets/maker/set/resolve/{revision}/data/test.jsonl": file.encode()}) as url:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        plain = {"columns": {"prompt": "problem", "ground_truth": "answer"}}
        (found,) = load_benchmarks(config(tmp_path, [], source=f"{address}/data/test.jsonl", **plain), tokenizer)
        assert (found.id, found.prompt, found.ground_truth) == ("test/row1", "1+1?", "2")
        with pytest.raises(ConfigError, match=rf"{address}/data/absent.jsonl could not be fetched"):
            load_benchmarks(config(tmp_path, [], source=f"{address}/data/absent.jsonl", **plain), tokenizer)


def test_a_relative_source_needs_a_folder(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYRL_DATA_DIR", raising=False)
    given = config(tmp_path, [row(0)])
    with pytest.raises(ConfigError, match="set data_dir=FOLDER or PYRL_DATA_DIR"):
        load_benchmarks(given.model_copy(update={"data_dir": None}), tokenizer)
    monkeypatch.setenv("PYRL_DATA_DIR", str(tmp_path))
    assert len(load_benchmarks(given.model_copy(update={"data_dir": None}), tokenizer)) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("benchmarks.aime24.samples=0", "benchmarks.aime24.samples"),
        ("benchmarks.aime24.temperature=-1", "benchmarks.aime24.temperature"),
        ("benchmarks.aime24.sample=3", "benchmarks.aime24.sample: unknown key"),
        ("benchmarks={}", "benchmarks"),
    ],
)
def test_settings_are_checked_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_evaluation(CONFIGS / "aime.yaml", ["model=m", override])


def test_an_unknown_benchmark_of_only_is_named(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match="only: aime26 is no benchmark here; known: aime24, aime25"):
        load_benchmarks(load_evaluation(CONFIGS / "aime.yaml", ["model=m", "only=[aime26]"]), tokenizer)
