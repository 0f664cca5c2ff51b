"""Reading prompt files: what is read, what is left out and counted, and what each bad row is told."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyrl.config import ConfigError, DataConfig
from pyrl.data.prompts import fingerprint, load_prompt_set, load_prompts
from pyrl.types import Prompt

from .conftest import row, word_tokenizer, write

SUFFIXES = pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])


def load(path, tokenizer, **settings):
    return load_prompt_set(DataConfig(path=path, **({"template": "plain"} | settings)), tokenizer, path=path)


@SUFFIXES
def test_both_formats_give_the_same_prompts(tmp_path, tokenizer, suffix):
    path = write(tmp_path / f"data{suffix}", [row("1+1?", "2", 7), row("2+2?", "4", 8, source="more")])
    prompts = load(path, tokenizer).prompts
    assert [p.id for p in prompts] == ["sums/7", "more/8"]
    assert [tokenizer.decode(p.token_ids) for p in prompts] == ["1+1?", "2+2?"]
    assert [(p.ground_truth, p.source) for p in prompts] == [("2", "sums"), ("4", "more")]
    assert all(isinstance(t, int) for t in prompts[0].token_ids) and isinstance(prompts[0].token_ids, tuple)


def test_the_template_of_the_config_is_used(tmp_path, tokenizer):
    path = write(tmp_path / "data.jsonl", [row("1+1?")])
    (prompt,) = load_prompts(DataConfig(path=path, template="chat"), tokenizer)
    assert tokenizer.decode(prompt.token_ids) == "<user>1+1?<assistant>"


def test_validation_prompts_come_from_their_own_path(tmp_path, tokenizer):
    train, held_out = write(tmp_path / "a.jsonl", [row("a?")]), write(tmp_path / "b.jsonl", [row("b?")])
    config = DataConfig(path=train, validation_path=held_out, template="plain")
    assert [tokenizer.decode(p.token_ids) for p in load_prompts(config, tokenizer)] == ["a?"]
    assert [tokenizer.decode(p.token_ids) for p in load_prompts(config, tokenizer, validation=True)] == ["b?"]
    with pytest.raises(ConfigError, match="validation_path"):
        load_prompts(DataConfig(path=train, template="plain"), tokenizer, validation=True)


def test_a_fingerprint_is_of_everything_a_run_reads_and_of_the_order():
    first, second = Prompt("a/0", (1, 23), "4", "a"), Prompt("a/1", (5,), "6", "a")
    others = [
        [second, first],
        [first],
        [first, second, second],
        [Prompt("a/2", (1, 23), "4", "a"), second],
        [Prompt("a/0", (12, 3), "4", "a"), second],
        [Prompt("a/0", (1, 23), "5", "a"), second],
    ]
    assert fingerprint([first, second]) == fingerprint([Prompt("a/0", (1, 23), "4", "a"), second])
    assert len({fingerprint(prompts) for prompts in [[first, second], *others]}) == 1 + len(others)


@SUFFIXES
def test_equal_questions_are_one_and_counted(tmp_path, tokenizer, suffix):
    rows = [row("1+1?", "2", 0), row("1+1?", "2", 0), row("1+1?", "2", 5), row("1+1?", "3", 6), row("2?", "2", 1)]
    found = load(write(tmp_path / f"data{suffix}", rows), tokenizer)
    assert [p.id for p in found.prompts] == ["sums/0", "sums/6", "sums/1"]
    assert (found.rows, found.duplicates, found.overlong) == (5, 2, 0)


def plain_columns(**names):
    return {"columns": {"prompt": "problem", "ground_truth": "answer"} | names}


@SUFFIXES
def test_plain_columns_are_read_by_their_names(tmp_path, tokenizer, suffix):
    rows = [{"problem": "a?", "answer": "x", "key": "q1", "prompt": 3}, {"problem": "b?", "answer": "y", "key": "q2"}]
    path = write(tmp_path / f"amc{suffix}", rows)
    named = load(path, tokenizer, **plain_columns(id="key")).prompts
    assert [(p.id, p.ground_truth, p.source) for p in named] == [("amc/q1", "x", "amc"), ("amc/q2", "y", "amc")]
    assert [tokenizer.decode(p.token_ids) for p in named] == ["a?", "b?"]
    numbered = load(path, tokenizer, **plain_columns()).prompts
    first = 0 if suffix == ".parquet" else 1
    assert [p.id for p in numbered] == [f"amc/row{first}", f"amc/row{first + 1}"]


@pytest.mark.parametrize(
    ("answer", "read"), [(142.0, "142"), (0.5, "0.5"), (7, "7"), (10**20, "100000000000000000000"), (-3.0, "-3")]
)
def test_numbers_as_answers_are_read_as_their_text(tmp_path, tokenizer, answer, read):
    path = write(tmp_path / "data.jsonl", [{"problem": "a?", "answer": answer}])
    assert load(path, tokenizer, **plain_columns()).prompts[0].ground_truth == read


@pytest.mark.parametrize(("answer", "read"), [(3, "3"), (2.5, "2.5"), ("x", "x")])
def test_numbers_as_ground_truths_are_read_as_their_text(tmp_path, tokenizer, answer, read):
    path = write(tmp_path / "data.jsonl", [row(answer=answer)])
    assert load(path, tokenizer).prompts[0].ground_truth == read


@pytest.mark.parametrize(
    ("extractor", "text", "answer"),
    [
        ("gsm8k", "3 rows with 8 books each make 3*8=<<3*8=24>>24 books.\n#### 24", "24"),
        ("gsm8k", "first #### 7\nthen\n####  -1,234,567.50 \n", "-1234567.50"),
        ("gsm8k", "#### 1, 2 and 3", "1, 2 and 3"),
        ("boxed", r"so $\boxed{1}$ and then $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
    ],
)
def test_an_extractor_takes_the_answer_out_of_a_worked_solution(tmp_path, tokenizer, extractor, text, answer):
    path = write(tmp_path / "data.jsonl", [{"problem": "a?", "answer": text}])
    assert load(path, tokenizer, **plain_columns(extractor=extractor)).prompts[0].ground_truth == answer


@pytest.mark.parametrize(
    ("extractor", "text"),
    [("gsm8k", "the answer is 24"), ("gsm8k", "24 ####  "), ("boxed", "24"), ("boxed", r"\boxed{}")],
)
def test_a_solution_without_an_answer_is_named(tmp_path, tokenizer, extractor, text):
    path = write(tmp_path / "data.jsonl", [{"problem": "a?", "answer": text}])
    with pytest.raises(ConfigError, match=rf"line 1: field answer: data.columns.extractor {extractor} finds no answer"):
        load(path, tokenizer, **plain_columns(extractor=extractor))


@pytest.mark.parametrize("bad", [row("How many \ud83d?"), row("b?", answer="\udc00"), row("b?", source="\udfff")])
def test_half_of_a_surrogate_pair_is_named(tmp_path, tokenizer, bad):
    path = write(tmp_path / "data.jsonl", [row("How many \U0001f600?", index=1), bad])
    with pytest.raises(ConfigError, match=r"line 2: field .*: character \d+ is the lone surrogate '\\ud.*' *, half"):
        load(path, tokenizer)


@pytest.mark.parametrize(
    ("bad", "names", "message"),
    [
        ({"problem": "b?"}, {}, "line 2: field answer"),
        ({"problem": "b?", "answer": True}, {}, "line 2: field answer"),
        ({"problem": "b?", "answer": float("nan")}, {}, "line 2: field answer"),
        ({"problem": "b?", "answer": ["4"]}, {}, "line 2: field answer"),
        ({"problem": 3, "answer": "4"}, {}, "line 2: field problem"),
        ({"problem": "b?", "answer": "4"}, {"id": "key"}, "line 2: field key"),
        ({"problem": "b?", "answer": "4", "key": 1}, {"id": "key"}, "line 2: id 'data/1'"),
    ],
)
def test_bad_plain_rows_are_told_which(tmp_path, tokenizer, bad, names, message):
    path = write(tmp_path / "data.jsonl", [{"problem": "a?", "answer": "4", "key": 1}, bad])
    with pytest.raises(ConfigError, match=message):
        load(path, tokenizer, **plain_columns(**names))


def test_a_column_that_a_parquet_file_lacks_is_named_with_those_it_has(tmp_path, tokenizer):
    path = write(tmp_path / "data.parquet", [{"problem": "a?", "solution": "4"}])
    with pytest.raises(ConfigError, match="column 'answer' is missing; there are problem, solution"):
        load(path, tokenizer, **plain_columns())


@SUFFIXES
def test_one_id_for_two_questions_names_both_rows(tmp_path, tokenizer, suffix):
    path = write(tmp_path / f"data{suffix}", [row("a?", index=3), row("b?", index=4), row("c?", index=3)])
    first, second = ("row 0", "row 2") if suffix == ".parquet" else ("line 1", "line 3")
    with pytest.raises(ConfigError, match=rf"{second}: id 'sums/3'.* at .*{first};"):
        load(path, tokenizer)


def test_an_id_of_a_duplicate_row_stays_taken(tmp_path, tokenizer):
    path = write(tmp_path / "data.jsonl", [row("a?", index=0), row("a?", index=1), row("b?", index=1)])
    with pytest.raises(ConfigError, match="id 'sums/1'"):
        load(path, tokenizer)


def test_rows_without_an_index_are_named_by_their_number(tmp_path, tokenizer):
    rows = [row("a?", index=1), row("b?"), row("c?")]
    del rows[1]["extra_info"], rows[2]["extra_info"]["index"]
    found = load(write(tmp_path / "data.jsonl", rows), tokenizer)
    assert [p.id for p in found.prompts] == ["sums/1", "sums/row2", "sums/row3"]


def changed(**fields):
    return row("b?", index=1) | fields


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({k: v for k, v in row().items() if k != "data_source"}, "data_source"),
        ({k: v for k, v in row().items() if k != "prompt"}, "prompt"),
        ({k: v for k, v in row().items() if k != "reward_model"}, "reward_model"),
        (changed(data_source=3), "data_source"),
        (changed(prompt=[]), "prompt"),
        (changed(prompt="text"), "prompt"),
        (changed(prompt=["text"]), r"prompt\[0\]"),
        (changed(prompt=[{"role": "user"}]), r"prompt\[0\].content"),
        (changed(prompt=[{"role": "user", "content": "  "}]), r"prompt\[0\].content"),
        (changed(prompt=[{"role": "user", "content": "a"}, {"role": None, "content": "b"}]), r"prompt\[1\].role"),
        (changed(reward_model={"style": "rule"}), "reward_model.ground_truth"),
        (changed(reward_model={"ground_truth": ""}), "reward_model.ground_truth"),
        (changed(reward_model={"ground_truth": [4]}), "reward_model.ground_truth"),
        (changed(extra_info=[1]), "extra_info"),
        (changed(extra_info={"index": 1.5}), "extra_info.index"),
        (changed(extra_info={"index": True}), "extra_info.index"),
    ],
)
def test_a_corrupt_jsonl_row_is_named(tmp_path, tokenizer, bad, field):
    path = write(tmp_path / "data.jsonl", [row("a?", index=0), bad])
    with pytest.raises(ConfigError, match=rf"data.jsonl, line 2: field {field}: wanted"):
        load(path, tokenizer)


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (changed(prompt=[]), "prompt"),
        (changed(prompt=None), "prompt"),
        (changed(reward_model=None), "reward_model"),
        (changed(reward_model={"style": "rule", "ground_truth": None}), "reward_model.ground_truth"),
        (changed(data_source=None), "data_source"),
    ],
)
def test_a_corrupt_parquet_row_is_named(tmp_path, tokenizer, bad, field):
    path = write(tmp_path / "data.parquet", [row("a?", index=0), bad])
    with pytest.raises(ConfigError, match=rf"data.parquet, row 1: field {field}: wanted"):
        load(path, tokenizer)


@pytest.mark.parametrize("column", ["data_source", "prompt", "reward_model"])
def test_a_missing_parquet_column_is_named(tmp_path, tokenizer, column):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist([row()]).drop_columns([column]), path)
    with pytest.raises(ConfigError, match=f"data.parquet, row 0: column '{column}' is missing"):
        load(path, tokenizer)


def test_a_parquet_column_of_another_type_is_named(tmp_path, tokenizer):
    path = write(tmp_path / "data.parquet", [row() | {"prompt": "1+1?"}])
    with pytest.raises(ConfigError, match="row 0: field prompt: wanted"):
        load(path, tokenizer)


def test_a_missing_file_says_where_data_is(tmp_path, tokenizer):
    with pytest.raises(ConfigError, match=r"nowhere.parquet does not exist; .*DAPO-Math-17k"):
        load(tmp_path / "nowhere.parquet", tokenizer)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.csv", b"a,b\n", "suffix '.csv' is not one of .parquet, .jsonl"),
        ("data.parquet", b"PAR1 not really", "not readable as parquet"),
        ("data.jsonl", b'{"data_source": \n', "line 1: not valid JSON"),
        ("data.jsonl", b"\xff\xfe\n", "line 1: not valid JSON"),
        ("data.jsonl", b"[1]\n", "line 1: wanted an object"),
        ("data.jsonl", b"\n", "no prompt left of 0 rows"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path, tokenizer, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name}.*{message}"):
        load(path, tokenizer)


def test_a_damaged_parquet_page_is_a_config_error(tmp_path, tokenizer):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist([row(f"{i}?", index=i) for i in range(200)]), path, compression="zstd")
    raw = bytearray(path.read_bytes())
    raw[40:400] = bytes(360)
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=r"data.parquet.*not readable as parquet"):
        load(path, tokenizer)


def test_an_overlong_prompt_is_an_error_or_dropped_and_counted(tmp_path, tokenizer):
    path = write(tmp_path / "data.jsonl", [row("12345", index=0), row("123456", index=1), row("1234", index=2)])
    with pytest.raises(ConfigError, match=r"line 2: prompt has 6 tokens, data.max_prompt_tokens is 5; .*drop"):
        load(path, tokenizer, max_prompt_tokens=5)
    found = load(path, tokenizer, max_prompt_tokens=5, overlong_prompts="drop")
    assert [p.id for p in found.prompts] == ["sums/0", "sums/2"]
    assert found.overlong == 1
    with pytest.raises(ConfigError, match=r"no prompt left of 3 rows \(3 over 3 tokens\)"):
        load(path, tokenizer, max_prompt_tokens=3, overlong_prompts="drop")


data_dir = pytest.mark.skipif("PYRL_DATA_DIR" not in os.environ, reason="PYRL_DATA_DIR is not set")


@data_dir
@pytest.mark.parametrize(
    ("name", "questions", "rows"), [("DAPO-Math-17k", 17398, 17398), ("aime24", 30, 960), ("math500", 500, 500)]
)
def test_real_data_loads(name, questions, rows):
    path = Path(os.environ["PYRL_DATA_DIR"]) / f"{name}.parquet"
    found = load(path, word_tokenizer(), max_prompt_tokens=512, overlong_prompts="drop")
    assert (found.rows, rows - found.duplicates) == (rows, questions)
    assert len(found.prompts) + found.overlong == questions
    assert len({p.id for p in found.prompts}) == len(found.prompts)
