"""A checkpoint whose files contain one matrix for each expert, as transformers 5 loads it: one tensor for all experts.

PEFT adapts the model's `experts.gate_up_proj` and `experts.down_proj`. Source: transformers' `conversion_mapping.py`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.derived import DerivedCheckpoint
from eckart.checkpoint.orientation import model_types

if TYPE_CHECKING:
    from torch import Tensor

_FUSED = {
    *("afmoe", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe", "exaone_moe"),
    *("flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "hunyuan_v1_moe", "jamba", "lfm2_moe"),
    *("longcat_flash", "mellum", "minimax", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe"),
    *("nemotron_h", "qwen3_next", "qwen3_omni_moe", "solar_open"),
}
_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")
_PARTS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
    "up_proj": (("up_proj",),),  # without a gate
}


def with_fused_experts(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its experts fused as in the model; itself if it has none, or the model does not fuse them."""
    if model_types(checkpoint.config).isdisjoint(_FUSED):
        return checkpoint
    owners: dict[str, set[str]] = {}
    for name in checkpoint.tensors:
        if match := _EXPERT.fullmatch(name):
            owners.setdefault(match[1], set()).add(match[2])
    parts = {}
    complete = {owner: len(found) for owner, found in owners.items() if found == set(map(str, range(len(found))))}
    for owner, count in complete.items():
        model_owner = owner.replace(".block_sparse_moe.", ".mlp.")
        for leaf, forms in _PARTS.items():
            for form in forms:
                experts = [[f"{owner}.{n}.{part}.weight" for part in form] for n in range(count)]
                is_gated = leaf == "up_proj" and f"{model_owner}.gate_up_proj" in parts
                if not is_gated and _are_alike(checkpoint, experts):
                    parts[f"{model_owner}.{leaf}"] = experts
    return _fused(checkpoint, parts) if parts else checkpoint


def _fused(base: Checkpoint, parts: Mapping[str, list[list[str]]]) -> DerivedCheckpoint:
    """The checkpoint with fused tensors, each made of some tensors of every expert, first output first."""
    joined = {name for experts in parts.values() for names in experts for name in names}
    tensors = {name: info for name, info in base.tensors.items() if name not in joined}
    for name, experts in parts.items():
        infos = [base.tensors[part] for part in experts[0]]
        shape = (len(experts), sum(info.shape[0] for info in infos), infos[0].shape[1])
        nbytes = len(experts) * sum(info.nbytes for info in infos)
        tensors[name] = replace(infos[0], name=name, shape=shape, nbytes=nbytes)
    return DerivedCheckpoint(
        base, tensors, computed={name: partial(_experts, base, experts) for name, experts in parts.items()}
    )


def _experts(base: Checkpoint, experts: Sequence[Sequence[str]], start: int, stop: int) -> "Tensor":
    """Experts `start` to `stop`, `(experts, out, in)`."""
    import torch

    return torch.stack([torch.cat([base.read(part) for part in parts]) for parts in experts[start:stop]])


def _are_alike(checkpoint: Checkpoint, experts: list[list[str]]) -> bool:
    """Whether all of these tensors exist, with the shapes and data types of the first expert's."""
    infos = [[checkpoint.tensors.get(name) for name in names] for names in experts]
    kinds = {tuple((info.shape, info.dtype) if info else None for info in expert) for expert in infos}
    return len(kinds) == 1 and None not in next(iter(kinds))
