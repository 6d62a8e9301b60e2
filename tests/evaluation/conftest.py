"""A tiny Llama on disk, tied and untied, with a tokenizer of its own: real files, no download."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["the", "a", "rank", "of", "weight", "adapter", "low", "high", "noise", "signal", "learns", "is"]


def write_tiny_llama(folder: Path, tokenizer: PreTrainedTokenizerFast, *, tied: bool = False) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_llama(tmp_path: Path, word_tokenizer) -> Path:
    return write_tiny_llama(tmp_path / "base", word_tokenizer(WORDS))


@pytest.fixture
def tied_llama(tmp_path: Path, word_tokenizer) -> Path:
    return write_tiny_llama(tmp_path / "tied", word_tokenizer(WORDS), tied=True)


@pytest.fixture
def text() -> str:
    generator = torch.Generator().manual_seed(0)
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (150,), generator=generator).tolist())
