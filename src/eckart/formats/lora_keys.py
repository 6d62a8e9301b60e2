"""Keys of LoRA files of image and video models: the module and the part that a key names, in every spelling.

Sources: sd-scripts' `networks/lora.py`, LyCORIS' `modules`, ComfyUI's `comfy/lora.py` and `weight_adapter`, diffusers'
`utils/state_dict_utils.py` and `loaders/lora_conversion_utils.py`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

# The ends of keys, longer ones first where one ends in another.
_ENDS = {
    ".lora_down.weight": "lora_A",
    ".lora_up.weight": "lora_B",
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora_mid.weight": "mid",
    ".lora_B.bias": "bias",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    # As diffusers wrote them before it had PEFT.
    ".lora.down.weight": "lora_A",
    ".lora.up.weight": "lora_B",
    ".lora_linear_layer.down.weight": "lora_A",
    ".lora_linear_layer.up.weight": "lora_B",
    "_lora.down.weight": "lora_A",
    "_lora.up.weight": "lora_B",
    # XLabs' processors of FLUX.
    ".down.weight": "lora_A",
    ".up.weight": "lora_B",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    **{f".hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".w_norm": "w_norm",
    ".b_norm": "b_norm",
    ".set_weight": "set_weight",
}
_NAMED = re.compile(r"\.(lora_[AB])\.(?!weight$|bias$)[\w-]+\.weight$")  # PEFT's with the name of the adapter
_UNREAD = {
    ".oft_": "OFT, a rotation of the weight, which is no sum",
    ".glora": "GLoRA, which also scales the weight",
    ".a1.weight": "GLoRA, which also scales the weight",
    ".reshape_weight": "a change of the weight's shape",
}
CARRIED = "bundle_emb."  # an embedding of a trigger word, which no module has


@dataclass(frozen=True)
class Key:
    """What a key names.

    Attributes:
        module: the module, as the file spells it; of diffusers' old names, as it does today.
        part: the part of its update.
        end: the end of the key after the module's name.
    """

    module: str
    part: str
    end: str


def parse_key(key: str) -> Key | None:
    """The module and part of a key; None if it is not one of an adapter."""
    if key.startswith(CARRIED):
        return None
    if named := _NAMED.search(key):
        return Key(key[: named.start()], named[1], named[0])
    end = next((end for end in _ENDS if key.endswith(end)), None)
    if end is None or len(end) == len(key):
        return None
    module = key.removesuffix(end).replace(".processor.", ".")
    if end.startswith("_lora"):
        # Old names have the UNet's projections in every component: `self_attn.to_q_lora` is a text encoder's `q_proj`.
        owner, _, leaf = module.rpartition(".")
        if owner.endswith("self_attn"):
            leaf = leaf.replace("to_", "") + "_proj"
        module = f"{owner}.{leaf}.0" if leaf == "to_out" else f"{owner}.{leaf}"
    return Key(module, _ENDS[end], end)


def fault_of(key: str) -> str:
    """Why a key is not read."""
    reason = next((why for mark, why in _UNREAD.items() if mark in key), "not part of a LoRA")
    return f"{key}: {reason}"


def is_adapter_key(key: str) -> bool:
    """Whether a key shows that a file is an adapter: its end belongs to adapters only."""
    found = parse_key(key)
    is_read = found is not None and found.part != "alpha" and found.end not in (".down.weight", ".up.weight")
    return is_read or any(mark in key for mark in (".lora_", *_UNREAD))


def ends_of(keys: Iterable[Key]) -> dict[str, str]:
    """The end that a file uses for each part, the first one if it has several."""
    ends: dict[str, str] = {}
    for key in keys:
        ends.setdefault(key.part, key.end)
    return ends
