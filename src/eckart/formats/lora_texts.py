"""The texts in the headers of LoRA files: those that were read, less what became false, and those of several files."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

from eckart.adapter.adapter import Adapter
from eckart.adapter.outline import AdapterOutline, LayerOutline
from eckart.formats.lora_file import KEYS, TEXT
from eckart.formats.lora_writing import alpha_of

_HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")  # of the tensors of the file that was read
_ARGUMENTS = "ss_network_args"
# Arguments of kohya's trainers and LyCORIS about ranks of single blocks, and about factors that are no longer there.
_OF_BLOCKS = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
_OF_FACTORS = ("factor", "use_cp", "use_tucker", "decompose_both", "full_matrix", "bypass_mode")


def texts_of(adapter: AdapterOutline, *, kohya: bool) -> dict[str, str]:
    """The texts of the file that the adapter was read from, with its present ranks and alphas.

    Args:
        adapter: the adapter.
        kohya: whether the file must have the texts of kohya's trainers; otherwise only those that it had are changed.
    """
    texts = {key: text for key, text in adapter.config.get(TEXT, {}).items() if key not in _HASHES}
    convolutions = [layer for layer in adapter.values() if prod(layer.lora_A.shape[2:]) > 1]
    arguments = _arguments(texts.get(_ARGUMENTS))
    linear = [layer for layer in adapter.values() if "conv_dim" not in arguments or layer not in convolutions]
    rank, alpha = _rank_and_alpha(linear or convolutions)
    now = {"ss_network_dim": rank, "ss_network_alpha": alpha}
    if arguments:
        now[_ARGUMENTS] = json.dumps(_updated(arguments, adapter, convolutions))
    if kohya:
        return {"ss_network_module": "networks.lora", **texts, **now}
    return texts | {name: text for name, text in now.items() if name in texts}


def _arguments(text: str | None) -> dict[str, Any]:
    """The arguments of the network that was trained; none if the text is no JSON object."""
    try:
        arguments = json.loads(text or "{}")
    except ValueError:
        return {}
    return arguments if isinstance(arguments, dict) else {}


def _updated(
    arguments: dict[str, Any], adapter: AdapterOutline, convolutions: Sequence[LayerOutline]
) -> dict[str, Any]:
    """The arguments with the present ranks and alphas of convolutions, and plain LoRA as the algorithm."""
    rank, alpha = _rank_and_alpha(convolutions)
    now = {"conv_dim": rank, "conv_alpha": alpha} if convolutions else {}
    ranks = {str(layer.rank) for layer in adapter.values()}
    gone = {name for name in _OF_BLOCKS if name in arguments} if not ranks <= _numbers(arguments) else set()
    if str(arguments.get("algo", "lora")).lower() not in ("lora", "locon"):
        now["algo"] = "lora"  # the factors of other kinds were multiplied
        gone |= set(_OF_FACTORS)
    kept = {name: value for name, value in arguments.items() if name not in gone}
    return kept | {name: value for name, value in now.items() if name in kept}


def _numbers(arguments: dict[str, Any]) -> set[str]:
    """The ranks that arguments state for single blocks."""
    return {number.strip() for name in _OF_BLOCKS for number in str(arguments.get(name, "")).split(",")}


def _rank_and_alpha(layers: Iterable[LayerOutline]) -> tuple[str, str]:
    """The rank and alpha of layers as texts; `Dynamic` where they differ."""
    ranks = {layer.rank for layer in layers}
    alphas = Counter(float(alpha_of(layer)) for layer in layers).most_common()
    return str(ranks.pop()) if len(ranks) == 1 else "Dynamic", str(alphas[0][0]) if len(alphas) == 1 else "Dynamic"


def merged_config(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """The config of several adapters as one: all keys, the texts that they share, and the titles of all."""
    if len(adapters) < 2 or not any(KEYS in adapter.config for adapter in adapters):
        return {}
    texts = [adapter.config.get(TEXT, {}) for adapter in adapters]
    common = {name: text for name, text in texts[0].items() if all(other.get(name) == text for other in texts)}
    titles = [_title(adapter) for adapter in adapters]
    keys = {key: place for adapter in reversed(adapters) for key, place in adapter.config.get(KEYS, {}).items()}
    return {TEXT: common | {"modelspec.merged_from": ", ".join(titles)}, KEYS: keys}


def _title(adapter: Adapter) -> str:
    """What a file calls its adapter, or its own name."""
    texts = adapter.config.get(TEXT, {})
    name = adapter.files[0].stem if adapter.files else "adapter"
    return texts.get("modelspec.title") or texts.get("ss_output_name") or name
