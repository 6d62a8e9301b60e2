"""The parts of an adapter that runtimes treat differently, each found by its name from headers alone.

Every function takes the outline of an adapter, and the config of a PEFT folder or None, and returns names.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from eckart.adapter.outline import AdapterOutline
from eckart.formats.components import component, component_of
from eckart.formats.peft_config import PeftConfig, is_trained_bias
from eckart.formats.peft_experts import expert_of
from eckart.formats.peft_tokens import is_token_rows

Config: TypeAlias = PeftConfig | None
Finds: TypeAlias = Callable[[AdapterOutline, Config], Sequence[str]]
_OF_PIPELINE = re.compile(r"lora_(unet|transformer|prior|te\d|te_text_model)_")
_LAYER = re.compile(r"layers\.(\d+)\.")
_HEADS = ("classifier", "score")  # of sequence classification
_EMBEDDINGS = ("embed_tokens", "lm_head")
# The release of PEFT that added a field of LoraConfig, and the one that tolerates fields that it does not know.
_SINCE = {
    "rank_pattern": (0, 6), "alpha_pattern": (0, 6), "use_rslora": (0, 8), "use_dora": (0, 9),
    "layer_replication": (0, 10), "exclude_modules": (0, 14), "lora_bias": (0, 14), "trainable_token_indices": (0, 15),
    "target_parameters": (0, 17),
}  # fmt: skip
_TOLERANT = (0, 14)


def dora(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Layers with a magnitude."""
    return [name for name, layer in adapter.items() if layer.magnitude is not None]


def biases(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Layers with a trained bias of their own, PEFT's `lora_bias`."""
    return [name for name, layer in adapter.items() if layer.bias is not None]


def biases_of_flux(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Layers with a trained bias, if the adapter is of FLUX under kohya's names."""
    return biases(adapter) if _is_flux(adapter) else []


def biases_beyond_flux(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Layers with a trained bias, if it is not."""
    return [] if _is_flux(adapter) else biases(adapter)


def base_biases(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Biases of the base that PEFT trained in place."""
    return [name for name in adapter.modules_to_save if is_trained_bias(name, adapter)]


def stated_bias(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """The config's `bias` if it is not "none", also if the file has no biases."""
    bias = adapter.config.get("bias", "none")
    return [] if bias == "none" else [str(bias)]


def token_rows(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Single rows of embeddings, PEFT's `trainable_token_indices`."""
    return [name for name in adapter.modules_to_save if is_token_rows(name)]


def base_weights(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Whole weights of modules that the adapter also updates, which PEFT has in their base layers."""
    return [name for name in adapter.modules_to_save if name.rpartition(".")[0] in adapter and name.endswith(".weight")]


def vectors(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Saved tensors of one dimension: weights of norms, and biases of saved modules."""
    trained = base_biases(adapter)
    return [name for name, tensor in adapter.modules_to_save.items() if tensor.ndim < 2 and name not in trained]


def matrices(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Weights of modules that are saved in full and have no low-rank update."""
    other = {*token_rows(adapter), *base_weights(adapter)}
    return [name for name, tensor in adapter.modules_to_save.items() if tensor.ndim > 1 and name not in other]


def saved_beyond_heads(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Saved matrices that are not a classification head."""
    return [name for name in matrices(adapter) if not _is_head(name)]


def vectors_beyond_heads(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Saved vectors that are not the bias of a classification head."""
    return [name for name in vectors(adapter) if not _is_head(name)]


def vectors_in_layers(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Saved vectors of a numbered layer."""
    return [name for name in vectors(adapter) if _LAYER.search(name)]


def vectors_outside_layers(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Saved vectors of no numbered layer, such as the last norm."""
    return [name for name in vectors(adapter) if not _LAYER.search(name)]


def norms(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Saved weights of normalization layers."""
    return [name for name in vectors(adapter) if name.endswith(".weight")]


def saved_biases(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Saved biases, of whatever origin."""
    return [*base_biases(adapter), *(name for name in vectors(adapter) if name.endswith(".bias"))]


def matrices_in_layers(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Saved matrices of a numbered layer."""
    return [name for name in matrices(adapter) if _LAYER.search(name)]


def matrices_outside_layers(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Saved matrices of no numbered layer, such as embeddings and heads."""
    return [name for name in matrices(adapter) if not _LAYER.search(name)]


def convolutions(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Layers that update a convolution."""
    return [name for name, layer in adapter.items() if layer.kind == "conv"]


def embeddings(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Layers that update an embedding, or a module with the name of one or of the output layer."""
    return [
        name for name, layer in adapter.items() if layer.kind == "embedding" or name.rpartition(".")[2] in _EMBEDDINGS
    ]


def fused_experts(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Parameters that contain all experts of a layer, PEFT's `target_parameters`."""
    parameters = (expert_of(name) for name, layer in adapter.items() if layer.kind == "expert")
    return list(dict.fromkeys(found[0] for found in parameters if found))


def unlike_ranks(adapter: AdapterOutline, config: Config = None) -> list[str]:
    """Layers whose rank is not the config's `r`, or else not the largest one."""
    largest = max((layer.rank for layer in adapter.values()), default=0)
    common = config.r if config else largest
    return [name for name, layer in adapter.items() if layer.rank != common]


def unlike_scales(adapter: AdapterOutline, config: Config = None) -> list[str]:
    """Layers whose scale is not `lora_alpha` / rank, because of `alpha_pattern` or `use_rslora`."""
    if config is None:
        return []
    return [
        name
        for name, layer in adapter.items()
        if not math.isclose(layer.scaling * layer.rank, config.lora_alpha, rel_tol=1e-12)
    ]


def scales(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Layers with another scale than 1."""
    return [name for name, layer in adapter.items() if layer.scaling != 1]


def text_targets(_: AdapterOutline, config: Config = None) -> list[str]:
    """`target_modules` as a regex rather than a list."""
    targets = config.target_modules if config else None
    return [targets] if isinstance(targets, str) and targets not in ("all", "all-linear") else []


def unpaired(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Projections without the ones that SGLang fuses them with: q with v, k or v with q, up with gate."""
    partners = {"q_proj": "v_proj", "k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
    owners = {name: name.rpartition(".") for name in adapter if _LAYER.search(name)}
    return [
        name
        for name, (owner, _dot, leaf) in owners.items()
        if leaf in partners and f"{owner}.{partners[leaf]}" not in adapter
    ]


def unet_projections(adapter: AdapterOutline, _: Config = None) -> list[str]:
    """Attention projections of a UNet, under their names in diffusers."""
    return [name for name in adapter if name.startswith("unet.") and ".to_" in name]


def is_of_pipeline(adapter: AdapterOutline) -> bool:
    """Whether the adapter is of a diffusion pipeline, or of one of its components."""
    named = any(component(name) or _OF_PIPELINE.match(name) for name in adapter)
    return named or component_of(adapter) is not None


def peft_release(_: AdapterOutline, config: Config = None) -> list[str]:
    """The first release of PEFT that reads every field of the config, if it is not the first with rank patterns.

    A release before 0.14 refuses a field that it does not know; a later one warns, so a field without effect is no
    reason to need it.
    """
    if config is None:
        return []
    values = {field: getattr(config, field) for field in config.model_fields_set if field in _SINCE}
    needed = [_SINCE[field] if value else min(_SINCE[field], _TOLERANT) for field, value in values.items()]
    latest = max(needed, default=(0, 0))
    return [f"PEFT {latest[0]}.{latest[1]}"] if latest > _SINCE["rank_pattern"] else []


def largest_rank(adapter: AdapterOutline, config: Config = None) -> int:
    """The largest rank that the config or a layer states."""
    declared = [config.r, *config.rank_pattern.values()] if config else []
    return max([*declared, *(layer.rank for layer in adapter.values())], default=0)


def _is_head(name: str) -> bool:
    return name.split(".")[-2:-1] in ([head] for head in _HEADS)


def _is_flux(adapter: AdapterOutline) -> bool:
    return any(name.startswith(("lora_unet_double_blocks_", "lora_unet_single_blocks_")) for name in adapter)
