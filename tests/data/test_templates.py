import json
from pathlib import Path

import pytest

from pyrl.config import ConfigError
from pyrl.data.templates import TEMPLATES, encode

from .conftest import byte_tokenizer

CONVERSATION = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "What is {1}+1?"}]


def test_chat_ends_where_the_assistant_begins(tokenizer):
    assert TEMPLATES["chat"](CONVERSATION, tokenizer) == "<system>Be brief. <user>What is {1}+1?<assistant>"


def test_chat_without_a_chat_template_names_the_remedy():
    with pytest.raises(ConfigError, match="no chat template; use r1_zero or plain"):
        TEMPLATES["chat"](CONVERSATION, byte_tokenizer(chat_template=None))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("syntax_error", "expected 'end of print statement'"),
        ("role_refused", "only assistant"),
        ("undefined_field", "no attribute 'nothing'"),
    ],
)
def test_a_chat_template_that_fails_is_named_with_its_line(name, reason):
    template = json.loads((Path(__file__).parent / "chat_templates.json").read_text())[name]
    for lines_before in (0, 2):
        tokenizer = byte_tokenizer(chat_template="{# #}\n" * lines_before + template)
        tokenizer.name_or_path = "some/folder"
        message = rf"chat template of some/folder, line {lines_before + 1}, fails for .*{reason}.* use r1_zero or plain"
        with pytest.raises(ConfigError, match=message):
            encode([CONVERSATION[1:]], "chat", tokenizer)


def test_a_chat_template_without_a_generation_prompt_is_warned_of_once(caplog, tokenizer):
    encode([CONVERSATION] * 3, "chat", tokenizer)
    assert not caplog.messages
    template = json.loads((Path(__file__).parent / "chat_templates.json").read_text())["no_generation_prompt"]
    encode([CONVERSATION] * 3, "chat", byte_tokenizer(chat_template=template))
    assert len(caplog.messages) == 1 and "{% if add_generation_prompt %}...{% endif %}" in caplog.messages[0]


def test_r1_zero_text(tokenizer):
    assert TEMPLATES["r1_zero"](CONVERSATION, tokenizer) == (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The "
        "assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
        "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
        "respectively, i.e., "
        "<think> reasoning process here </think> <answer> answer here </answer>. User: Be brief. What is {1}+1?. "
        "Assistant: Let me solve this step by step.\n<think>"
    )


def test_plain_adds_nothing(tokenizer):
    assert TEMPLATES["plain"](CONVERSATION, tokenizer) == "Be brief. What is {1}+1?"


@pytest.mark.parametrize(("template", "with_bos"), [("chat", False), ("plain", True), ("r1_zero", True)])
def test_only_text_templates_get_the_tokenizers_bos(template, with_bos):
    tokenizer = byte_tokenizer(bos=True)
    (ids,) = encode([CONVERSATION], template, tokenizer)
    text = TEMPLATES[template](CONVERSATION, tokenizer)
    assert len(ids) == len(text) + with_bos
    assert (ids[0] == tokenizer.bos_token_id) == with_bos
    assert tokenizer.decode(ids[with_bos:]) == text


def test_conversations_are_encoded_in_order(tokenizer):
    conversations = [[{"role": "user", "content": text}] for text in ("a", "bcd", "ef")]
    assert [tokenizer.decode(ids) for ids in encode(conversations, "plain", tokenizer)] == ["a", "bcd", "ef"]
    assert encode([], "plain", tokenizer) == []
