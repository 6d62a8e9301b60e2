"""llama.cpp's architectures: the GGUF tensor of each module of a model, and the order of its rows there.

Names are those of the `gguf` package's tables. For some models llama.cpp rotates neighbouring rows of a head where
transformers rotates its two halves, and separates or reorders what they fuse: its converter reorders the rows of
weights, so those of lora_B are reordered here. Every model type listed was compared with that converter.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from eckart.checkpoint.naming import nearest_names
from eckart.errors import MissingExtraError

Order = np.ndarray  # the module's output in each row of the tensor

# transformers' model types whose GGUF architecture has another name, after those whose name is the same.
ARCHITECTURES: Mapping[str, str] = {
    **{
        name: name
        for name in (
            *("afmoe", "apertus", "arcee", "bert", "bloom", "cohere2", "ernie4_5", "eurobert", "exaone4", "falcon"),
            *("gemma", "gemma2", "gemma3", "gemma4", "glm4", "gpt2", "granite", "granitemoe", "hunyuan_vl", "jais2"),
            *("jamba", "laguna", "lfm2", "llama", "llama4", "mamba2", "mellum", "minicpm3", "mistral3", "nemotron"),
            *("olmo", "olmo2", "olmoe", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2"),
            *("hy_v3", "granite_swa", "dots1"),
        )
    },
    **dict.fromkeys(("camembert", "distilbert", "roberta", "xlm-roberta"), "bert"),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "youtu"), "deepseek2"),
    **dict.fromkeys(("internlm3", "iquestcoder", "mistral", "mixtral"), "llama"),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), "qwen2vl"),
    **dict.fromkeys(("glm4_moe", "solar_open"), "glm4moe"),
    "cohere": "command-r",
    "cohere2_moe": "cohere2moe",
    "ernie4_5_moe": "ernie4_5-moe",
    "exaone_moe": "exaone-moe",
    "gemma3_text": "gemma3",
    "gemma4_text": "gemma4",
    "glm": "chatglm",
    "glm_moe_dsa": "glm-dsa",
    "gpt_bigcode": "starcoder",
    "gpt_neox": "gptneox",
    "gpt_oss": "gpt-oss",
    "granitemoeshared": "granitemoe",
    "granitemoe_swa": "granite_swa",
    "hunyuan_v1_dense": "hunyuan-dense",
    "hunyuan_v1_moe": "hunyuan-moe",
    "lfm2_moe": "lfm2moe",
    "llama4_text": "llama4",
    "mimo_v2_flash": "mimo2",
    "minimax_m2": "minimax-m2",
    "ministral3": "mistral3",
    "modernbert": "modern-bert",
    "olmo3": "olmo2",
    "paddleocr_vl": "paddleocr",
    "phi": "phi2",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "qwen3_vl": "qwen3vl",
    "qwen3_vl_moe": "qwen3vlmoe",
}
_ROTARY = (*("arcee", "granite", "granite_swa", "granitemoe", "llama", "mistral3", "olmo", "smollm3"),)
_LATENT = ("attn_q", "attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_kv_b")
_INDEXER = ("indexer.attn_q_b", "indexer.attn_k", "indexer.proj")
# Tensors that llama.cpp multiplies by without looking for an adapter.
_NOT_ADAPTED = {
    "deepseek2": (*_LATENT, "output"),
    "glm-dsa": (*_LATENT, *_INDEXER, "output"),
    "minicpm3": _LATENT[1:],
}
_STORED_TRANSPOSED = ("gpt-oss", "llama4")  # fused experts as (in, out)
_NORM_PLUS_ONE = ("gemma", "gemma2", "gemma3", "nemotron")  # llama.cpp adds the 1 to the weight
_EXPERT = re.compile(r"(.*)\bexperts\.(\d+)\.(\w+)|(.*)\b(?:experts|block_sparse_moe)\.(\w+)\[(\d+)\]")
_PARTS = {
    **dict.fromkeys(("gate_proj", "w1"), ("gate",)),
    **dict.fromkeys(("up_proj", "w3"), ("up",)),
    **dict.fromkeys(("down_proj", "w2", "output_linear"), ("down",)),
    **dict.fromkeys(("gate_up_proj", "input_linear"), ("gate", "up")),
}
# Beginnings of names that the tables of the gguf package do not have.
_WRAPPERS = ("bert.", "roberta.", "distilbert.", "transformer.", "model.")


@dataclass(frozen=True)
class TensorRows:
    """Where a module's weight is in a GGUF file.

    Attributes:
        tensor: such as `blk.0.attn_q`, without `.weight`.
        expert: index in a stack of experts.
        order: of the tensor's rows in the module's outputs; None if they are the same.
    """

    tensor: str
    expert: int | None = None
    order: Order | None = None

    @property
    def name(self) -> str:
        """The tensor, with the index of the expert."""
        return self.tensor if self.expert is None else f"{self.tensor}[{self.expert}]"


def architecture_of(config: Mapping[str, Any]) -> str:
    """The GGUF architecture of a model.

    Args:
        config: its config.json.

    Raises:
        ValueError: the model type is not known.
    """
    types = [str(each.get("model_type")) for each in (config, _text(config))]
    kind = next((kind for kind in types if kind in ARCHITECTURES), None)
    if kind is None:
        near = nearest_names(types[0], ARCHITECTURES)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        msg = f"how llama.cpp stores the weights of {types[0]} is not known, only of {len(ARCHITECTURES)} others{hint}"
        raise ValueError(msg)
    _tensors(ARCHITECTURES[kind])
    return ARCHITECTURES[kind]


def targets(module: str, outputs: int, architecture: str, config: Mapping[str, Any]) -> list[TensorRows]:
    """The tensors that a module's weight is stored in: several if llama.cpp separates what the model fuses.

    Args:
        module: its name in files or in the module tree; with an index for one expert of a fused parameter.
        outputs: rows of its weight.
        architecture: from `architecture_of`.
        config: config.json of the model.

    Raises:
        ValueError: there is none, or llama.cpp ignores an adapter of it.
    """
    config = _text(config)
    if match := _EXPERT.fullmatch(module):
        return _expert_targets(match, outputs, architecture)
    if match := re.search(r"\.(\d+)\.shared_mlp\.input_linear$", module):
        names = [f"blk.{match[1]}.ffn_{part}_shexp" for part in ("gate", "up")]
        return [TensorRows(name, order=order) for name, order in zip(names, _halves(outputs), strict=True)]
    tensor = tensor_of(module.removesuffix(".weight"), architecture)
    leaf = re.sub(r"^blk\.\d+\.", "", tensor)
    if leaf in _NOT_ADAPTED.get(architecture, ()):
        msg = f"llama.cpp ignores an adapter of {leaf} in {architecture} models: merge it into the model instead"
        raise ValueError(msg)
    order = _ORDERS.get((architecture, leaf))
    return [TensorRows(tensor, order=None if order is None else order(outputs, config))]


def tensor_of(module: str, architecture: str) -> str:
    """The GGUF name of a module, without `.weight`; ValueError if the architecture has none."""
    text = re.sub(r"^(model\.){2,}", "model.", re.sub(r"\b(?:language_model|text_model)\.", "", module))
    block = re.search(r"(?:^|\.)(\d+)\.", text)
    if block:
        text = f"{text[: block.start(1)]}0{text[block.end(1) :]}"
    names = _tensors(architecture)
    for name in (text, *(text.removeprefix(start) for start in _WRAPPERS)):
        if name in names:
            return names[name].replace("blk.0.", f"blk.{block[1] if block else 0}.", 1)
    msg = f"llama.cpp's {architecture} models have no such tensor"
    raise ValueError(msg)


def norm_shift(architecture: str) -> float:
    """What llama.cpp's files add to the weights of norms, which the model adds when it computes."""
    return 1.0 if architecture in _NORM_PLUS_ONE else 0.0


def expert_count(config: Mapping[str, Any]) -> int | None:
    """Number of experts in a layer of the model."""
    names = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    counts = [count for name in names if type(count := _text(config).get(name)) is int]
    return counts[0] if counts else None


def _expert_targets(match: re.Match[str], outputs: int, architecture: str) -> list[TensorRows]:
    owner, index, leaf = (match[1], match[2], match[3]) if match[2] else (match[4], match[6], match[5])
    block, parts = re.search(r"(?:^|\.)(\d+)\.", owner), _PARTS.get(leaf, ())
    names = [f"ffn_{part}_exps" for part in parts]
    known = _tensors(architecture)
    if block is None or not names or any(f"blk.0.{name}" not in known for name in names):
        msg = f"llama.cpp's {architecture} models have no such experts"
        raise ValueError(msg)
    if match[6] and architecture in _STORED_TRANSPOSED:
        msg = f"the experts of {architecture} models are stored as (in, out), which is not supported"
        raise ValueError(msg)
    orders = [None] if len(names) == 1 else _halves(outputs)
    return [TensorRows(f"blk.{block[1]}.{name}", int(index), order) for name, order in zip(names, orders, strict=True)]


@lru_cache(maxsize=4)
def _tensors(architecture: str) -> dict[str, str]:
    """GGUF names by the names of modules, of a model of one block; ValueError if the gguf package is too old."""
    try:
        from gguf.constants import MODEL_ARCH_NAMES
        from gguf.tensor_mapping import get_tensor_name_map
    except ImportError:
        extra, purpose = "gguf", "names of tensors in GGUF files"
        raise MissingExtraError.for_extra(extra, purpose) from None
    found = [key for key, name in MODEL_ARCH_NAMES.items() if name == architecture]
    if not found:
        msg = f"the installed gguf package does not know llama.cpp's architecture {architecture}: a newer one may"
        raise ValueError(msg)
    return {module: name for module, (_, name) in get_tensor_name_map(found[0], 1).mapping.items()}


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the language model in a multimodal one."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _sizes(config: Mapping[str, Any], *names: str) -> int:
    """The first of these fields of the config; ValueError if it has none."""
    for name in names:
        if type(value := config.get(name)) is int and value > 0:
            return value
    msg = f"the order of its rows follows from {names[0]}, which is not known: give the model as `base`"
    raise ValueError(msg)


def _heads(config: Mapping[str, Any]) -> int:
    return _sizes(config, "num_attention_heads", "n_head")


def _key_heads(config: Mapping[str, Any]) -> int:
    return config.get("num_key_value_heads") or _heads(config)


def _divided(outputs: int, *shape: int) -> Order:
    """The outputs in an array of this shape and one more dimension."""
    parts = int(np.prod(shape))
    if outputs % parts:
        msg = f"its {outputs} outputs do not divide into {parts} parts, as the model's config says"
        raise ValueError(msg)
    return np.arange(outputs).reshape(*shape, outputs // parts)


def _halves(outputs: int) -> list[Order]:
    return list(_divided(outputs, 2))


def _rotary_query(outputs: int, config: Mapping[str, Any]) -> Order:
    return _divided(outputs, _heads(config), 2).swapaxes(1, 2).reshape(-1)


def _rotary_key(outputs: int, config: Mapping[str, Any]) -> Order:
    return _divided(outputs, _key_heads(config), 2).swapaxes(1, 2).reshape(-1)


def _query_key_value_by_head(outputs: int, config: Mapping[str, Any]) -> Order:
    """From query, key and value of each head to those of all heads."""
    return _divided(outputs, _heads(config), 3).swapaxes(0, 1).reshape(-1)


def _falcon(outputs: int, config: Mapping[str, Any]) -> Order:
    """From groups of queries with one key and value to all queries, all keys and all values."""
    heads, groups = _heads(config), 1
    if config.get("new_decoder_architecture"):
        groups = _sizes(config, "num_kv_heads", "n_head_kv")
    elif not config.get("multi_query", True):
        groups = heads
    if heads % groups:
        msg = f"{heads} heads do not divide into {groups} groups"
        raise ValueError(msg)
    grouped = _divided(outputs, groups, heads // groups + 2)
    return np.concatenate([grouped[:, :-2].reshape(-1), grouped[:, -2].reshape(-1), grouped[:, -1].reshape(-1)])


_ORDERS: Mapping[tuple[str, str], Callable[[int, Mapping[str, Any]], Order]] = {
    **{(name, "attn_q"): _rotary_query for name in _ROTARY},
    **{(name, "attn_k"): _rotary_key for name in _ROTARY},
    ("bloom", "attn_qkv"): _query_key_value_by_head,
    ("gptneox", "attn_qkv"): _query_key_value_by_head,
    ("falcon", "attn_qkv"): _falcon,
}
