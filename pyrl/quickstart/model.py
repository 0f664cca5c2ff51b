"""A Llama-architecture model of 0.2M random weights with its own tokenizer, in Hugging Face format."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pyrl.quickstart.task import STANDARD, RingWalk

END = "<|endoftext|>"


def build_tokenizer(task: RingWalk = STANDARD) -> PreTrainedTokenizerFast:
    """One token a word: places `0`, `1`, ..., moves `+0`, `+1`, ..., and `:`. A response ends with `<|endoftext|>`.

    transformers reads it back as it is for a Llama; for a Qwen2 it would put Qwen's own splitting in its place.
    """
    words = [":", *(str(i) for i in range(task.places)), *(f"+{i}" for i in range(task.places))]
    vocabulary = {END: 0, "<unk>": 1} | {word: i + 2 for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, unk_token="<unk>", clean_up_tokenization_spaces=False
    )


def write_model(folder: Path, *, seed: int, task: RingWalk = STANDARD) -> Path:
    """Write config, random weights (fp32) and tokenizer into `folder` and return it."""
    tokenizer = build_tokenizer(task)
    config = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 8) * 8,
        hidden_size=96,
        intermediate_size=264,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.1,  # with the usual 0.02 it does not learn to add in any time
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
