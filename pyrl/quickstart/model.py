"""A Qwen2-architecture model of 211,296 random weights with its own tokenizer, in Hugging Face format."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

CHARACTERS = "0123456789+->:"
END = "<|endoftext|>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; a response ends with `<|endoftext|>`."""
    vocabulary = {END: 0, "<unk>": 1} | {c: i + 2 for i, c in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, unk_token="<unk>")


def write_model(folder: Path, *, seed: int) -> Path:
    """Write config, random weights (fp32) and tokenizer into `folder` and return it."""
    tokenizer = build_tokenizer()
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=96,
        intermediate_size=264,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
