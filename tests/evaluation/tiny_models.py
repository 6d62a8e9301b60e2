"""Tiny models of several architectures with random weights, as transformers saves them."""

from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.3,
}  # fmt: skip
MODELS = {
    "llama": ("LlamaConfig", {}),
    "llama, tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "gemma2, sliding and capped": ("Gemma2Config", {"head_dim": 8, "sliding_window": 8}),
    "gemma3, two rotary embeddings": ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": 8}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 3}),
    "phi3": ("Phi3Config", {}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "bloom, alibi": ("BloomConfig", {"n_layer": 3, "n_head": 4}),
    "falcon, alibi": ("FalconConfig", {"alibi": True, "new_decoder_architecture": False, "multi_query": False}),
    "mpt, alibi": ("MptConfig", {"d_model": 32, "n_heads": 4, "n_layers": 3, "expansion_ratio": 2, "max_seq_len": 64}),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
}


def saved(folder: Path, kind: str, **changes: object) -> Path:
    name, own = MODELS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**(SIZES | own | changes))
    AutoModelForCausalLM.from_config(config).eval().save_pretrained(folder)
    return folder


def train_a_little(model, tokenizer, text) -> None:
    """A few steps on the beginning of a text, after which the model is better there."""
    ids = torch.tensor(tokenizer(text)["input_ids"])[None, :64]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
