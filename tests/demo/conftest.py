"""A tiny Llama that knows the commonest words of the language reference, and settings that train it at once."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eckart.demo import DemoSettings, language_reference
from eckart.nn import LoRAConfig
from eckart.training import FinetuneSettings, TrainSettings


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory, word_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Counter(" ".join(language_reference().training.values()).split())
    word_tokenizer(word for word, _ in words.most_common(125)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def settings() -> DemoSettings:
    training = TrainSettings(steps=24, batch_size=2, learning_rate=2e-2)
    return DemoSettings(LoRAConfig(rank=4, alpha=8), training, sequence_tokens=128, held_out_chars=8_000)


@pytest.fixture(scope="session")
def full() -> FinetuneSettings:
    return FinetuneSettings(steps=12, batch_size=2, learning_rate=1e-2)
