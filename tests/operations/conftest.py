"""Small models saved as users save them, and fine-tunes of them with a known update."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn


def save_pair(model: nn.Module, folder: Path, *, rank: int, names: Callable[[str], bool], scale: float = 0.02) -> Path:
    """Save `model` as folder/base, and folder/tuned with a random rank-`rank` update on the matrices named."""
    generator = torch.Generator().manual_seed(3)
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and names(name):
                rows, columns = weight.shape[0], weight[0].numel()
                update = torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)
                weight.add_(update.view_as(weight), alpha=scale / rank**0.5)
    model.save_pretrained(folder / "tuned")
    return folder


@pytest.fixture(scope="session")
def llama_pair(tmp_path_factory) -> Path:
    """A two-layer Llama with tied embeddings and an exact rank-8 update on every projection."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    return save_pair(model, tmp_path_factory.mktemp("llama"), rank=8, names=lambda name: "proj" in name)


@pytest.fixture(scope="session")
def smollm2_folder(smollm2, tmp_path_factory) -> Path:
    """SmolLM2-135M-Instruct as a bfloat16 model folder."""
    from eckart.evaluation.model import load_model

    folder = tmp_path_factory.mktemp("smollm2")
    load_model(smollm2).to(torch.bfloat16).save_pretrained(folder)
    return folder
