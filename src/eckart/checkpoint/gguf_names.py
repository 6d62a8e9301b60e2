"""Hugging Face config keys and tensor names of GGUF files, for dense models of the llama family."""

import re
from collections.abc import Sequence
from typing import Any

from eckart.checkpoint.gguf_header import GgufHeader
from eckart.errors import FileFormatError

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONFIG = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "rope.freq_base": "rope_theta",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
# A tensor of llama.cpp only; transformers computes it from the config.
_ROTARY_FACTORS = {"rope_freqs.weight": "model.rotary_emb.rope_freqs"}


def hf_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor; empty when there is none."""
    if name in _ROTARY_FACTORS:
        return _ROTARY_FACTORS[name]
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    layer, part, leaf = match.groups() if match else (None, "", "")
    module = _TOP.get(part) if layer is None else _BLOCK.get(part)
    if module is None:
        return ""
    return f"{module}.{leaf}" if layer is None else f"model.layers.{layer}.{module}.{leaf}"


def config_of(headers: Sequence[GgufHeader]) -> dict[str, Any]:
    """The keys of config.json that are in the metadata.

    Args:
        headers: of all files of the model, the one with the metadata first.

    Raises:
        FileFormatError: the architecture is not supported, or a required size is missing.
    """
    header = headers[0]
    architecture = header.metadata.get("general.architecture")
    if architecture not in _CLASSES:
        msg = (
            f"{header.path}: GGUF architecture {architecture!r} is not supported, {', '.join(_CLASSES)} are; "
            "give the model's safetensors checkpoint instead"
        )
        raise FileFormatError(msg)
    config: dict[str, Any] = {"model_type": architecture, "architectures": [_CLASSES[architecture]]}
    for key, name in _CONFIG.items():
        if f"{architecture}.{key}" in header.metadata:
            config[name] = header.metadata[f"{architecture}.{key}"]
    for key, name in _TOKENS.items():
        if f"tokenizer.ggml.{key}" in header.metadata:
            config[name] = header.metadata[f"tokenizer.ggml.{key}"]
    shapes = {tensor.name: tensor.shape for header in headers for tensor in header.tensors}
    if shapes.get("token_embd.weight"):
        config["vocab_size"] = shapes["token_embd.weight"][0]
    config["tie_word_embeddings"] = "output.weight" not in shapes
    config.setdefault("num_key_value_heads", config.get("num_attention_heads"))
    for name in ("num_attention_heads", "num_key_value_heads", "hidden_size", "num_hidden_layers"):
        if type(config.get(name)) is not int or config[name] <= 0:
            value = "an array" if name in config and config[name] is None else repr(config.get(name))
            msg = f"{header.path}: the metadata has no usable {name} (got {value})"
            raise FileFormatError(msg)
    return config
