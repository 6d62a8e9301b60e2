"""Which module of a pipeline a kohya name means, found by running diffusers' converters.

They move tensors from name to name, so numbered placeholders show which name becomes which, and which rows of a fused
layer go where. Their arithmetic is not used: they fold alpha into the weights, and drop some alphas.
"""

import functools
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType, SimpleNamespace
from typing import Any

from eckart.errors import MissingExtraError
from eckart.formats.diffusers import module_and_part

Rows = tuple[tuple[Fraction, Fraction], ...]
WHOLE: Rows = ((Fraction(0), Fraction(1)),)
_LAYERS_PER_BLOCK = 2  # of Stable Diffusion 1, 2 and XL
# FLUX under its original names. The number of rows is what it takes to see how diffusers splits a layer.
_DOUBLE = {
    f"{side}_{part}": rows
    for side in ("img", "txt")
    for part, rows in {"attn_qkv": 3, "attn_proj": 1, "mlp_0": 1, "mlp_2": 1, "mod_lin": 1}.items()
}
_SINGLE = {"linear1": 21504, "linear2": 1, "modulation_lin": 1}
_AROUND = {
    **{f"{part}_in_{layer}_layer": 1 for part in ("time", "vector", "guidance") for layer in ("in", "out")},
    "img_in": 1,
    "txt_in": 1,
    "final_layer_linear": 1,
    "final_layer_adaLN_modulation_1": 2,
}
_FLUX = re.compile(rf"lora_unet_(double_blocks_\d+|single_blocks_\d+|{'|'.join(_AROUND)})(_|$)")
# Stable Diffusion XL under its original names, where they differ from diffusers'.
_RESNET = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}
_SGM = ("_input_blocks_", "_middle_block_", "_output_blocks_")
_XL_BLOCKS = [
    *(f"{side}_blocks_{block}_{layer}" for side in ("input", "output") for block in range(9) for layer in range(3)),
    *(f"middle_block_{layer}" for layer in range(3)),
]
_XL_ONCE = [
    *("time_embed_0", "time_embed_2", "label_emb_0_0", "label_emb_0_2", "input_blocks_0_0", "out_2"),
    *("input_blocks_3_0_op", "input_blocks_6_0_op", "output_blocks_2_2_conv", "output_blocks_5_2_conv"),
]
# The converters map any name to some name; only modules that such models have count.
_KNOWN = re.compile(
    r"unet\.(((down|up)_blocks\.\d+|mid_block)\.(attentions\.\d+\.(proj_in|proj_out|transformer_blocks\.\d+\."
    r"(attn[12]\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2)))|resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)"
    r"|(down|up)samplers\.0\.conv)|conv_in|conv_out|(time|add)_embedding\.linear_[12])"
    r"|text_encoder(_2)?\.(text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])|text_projection)"
)
_IS_XL = re.compile(
    r"text_encoder_2\.text_model\.|unet\.(add_embedding\.|up_blocks\.0\.attentions\.|.*\.transformer_blocks\.[1-9])"
)


@dataclass(frozen=True)
class Part:
    """A module of the pipeline, and its share of a kohya layer's outputs, in the module's order."""

    module: str
    rows: Rows = WHOLE


Table = dict[str, tuple[Part, ...]]


def is_whole(parts: Sequence[Part]) -> bool:
    """Whether a layer is one complete module."""
    return len(parts) == 1 and parts[0].rows == WHOLE


def parts_of(names: Iterable[str]) -> Table:
    """The modules that kohya names mean, for the models that diffusers converts: Stable Diffusion 1, 2, XL, and FLUX.

    Raises:
        MissingExtraError: diffusers is not installed.
    """
    wanted = list(names)
    flux = _flux() if any(map(_FLUX.match, wanted)) else {}
    rest = _stable_diffusion([name for name in wanted if name not in flux])
    return {name: flux[name] for name in wanted if name in flux} | _single(rest)


def kohya_names(modules: Iterable[str]) -> Table:
    """The kohya layers that modules of a pipeline form, each with all its parts; unknown modules are in none.

    The names are those of sd-scripts: original ones in the UNet of Stable Diffusion XL and in FLUX, diffusers' names in
    Stable Diffusion 1 and 2.

    Raises:
        MissingExtraError: the modules are of XL or FLUX, and diffusers is not installed.
    """
    wanted = list(modules)
    unet = [name for name in wanted if _KNOWN.fullmatch(name) and name.startswith("unet.")]
    transformer = {name for name in wanted if name.startswith("transformer.")}
    is_xl = any(map(_IS_XL.match, wanted))
    table = _single(_xl(unet)) if is_xl else _flat("lora_unet_", unet)
    if transformer:
        table |= {name: parts for name, parts in _flux().items() if any(part.module in transformer for part in parts)}
    first = (
        "lora_te1_"
        if is_xl or transformer or any(name.startswith("text_encoder_2.") for name in wanted)
        else "lora_te_"
    )
    table |= _flat(first, [name for name in wanted if name.startswith("text_encoder.")])
    # FLUX's second encoder is a T5, which kohya numbers as the third, as in Stable Diffusion 3.
    second = [name for name in wanted if name.startswith("text_encoder_2.")]
    t5 = [name for name in second if name.startswith("text_encoder_2.encoder.block.")]
    table |= _flat("lora_te2_", [name for name in second if name not in t5])
    return table | _flat("lora_te3_", t5)


def _single(names: Mapping[str, str]) -> Table:
    return {name: (Part(module),) for name, module in names.items()}


def _flat(prefix: str, modules: Iterable[str]) -> Table:
    """Kohya's names of modules that have the same name in diffusers; the prefix replaces the component."""
    return _single({prefix + module.partition(".")[2].replace(".", "_"): module for module in modules})


def _stable_diffusion(names: Iterable[str]) -> dict[str, str]:
    """Names that diffusers' converters of Stable Diffusion know, and the modules that they mean."""
    wanted = [name for name in names if name.startswith(("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_"))]
    # Given both kinds of names, the converter silently drops the original ones.
    original = [name for name in wanted if any(block in name for block in _SGM)]
    other = [name for name in wanted if name not in set(original)]
    modules = _moved(original) | _moved(other)
    return {name: module for name, module in modules.items() if _KNOWN.fullmatch(module)}


def _moved(names: list[str]) -> dict[str, str]:
    """The module that the converters map each name to; a name that makes them fail is omitted."""
    if not names:
        return {}
    converters = _converters()
    state: dict[str, Any] = {f"{name}.lora_{part}.weight": name for name in names for part in ("down", "up")}
    try:
        config = SimpleNamespace(layers_per_block=_LAYERS_PER_BLOCK)
        state = converters._maybe_map_sgm_blocks_to_diffusers(state, config)
        moved, _ = converters._convert_non_diffusers_lora_to_diffusers(state)
    except (ValueError, LookupError):
        return {} if len(names) == 1 else {name: new for one in names for name, new in _moved([one]).items()}
    parts = {name: module_and_part(key) for key, name in moved.items()}
    return {name: part[0] for name, part in parts.items() if part}


def _xl(modules: Iterable[str]) -> dict[str, str]:
    """The original name of each module of Stable Diffusion XL: the candidate that the converter turns into it."""
    wanted = set(modules)
    inside = {
        found[1] for name in wanted if (found := re.fullmatch(r"unet\.(?:\w+\.\d+|mid_block)\.\w+\.\d+\.(.+)", name))
    }
    tails = {_RESNET.get(tail, tail.replace(".", "_")) for tail in inside - {"conv"}}
    candidates = [*_XL_ONCE, *(f"{block}_{tail}" for block in _XL_BLOCKS for tail in tails)]
    found = _stable_diffusion(f"lora_unet_{name}" for name in candidates)
    return {name: module for name, module in found.items() if module in wanted}


@functools.cache
def _flux() -> Table:
    """Every name of FLUX that diffusers knows, and the modules that it is split into."""
    import torch

    names = {
        **{f"double_blocks_{block}_{part}": rows for block in range(19) for part, rows in _DOUBLE.items()},
        **{f"single_blocks_{block}_{part}": rows for block in range(38) for part, rows in _SINGLE.items()},
        **_AROUND,
    }
    state = {}
    for number, (name, rows) in enumerate(names.items()):
        state[f"lora_unet_{name}.lora_down.weight"] = torch.full((1, 1), float(number))
        state[f"lora_unet_{name}.lora_up.weight"] = torch.arange(float(rows))[:, None]
    moved = _converters()._convert_kohya_flux_lora_to_diffusers(state)
    table: Table = {}
    numbered = list(names.items())
    for key, down in moved.items():
        if key.endswith(".lora_A.weight"):
            name, rows = numbered[int(down)]
            module = key.removesuffix(".lora_A.weight")
            taken = moved[f"{module}.lora_B.weight"].flatten().int().tolist()
            # Modules outside the blocks come without the component, and diffusers then does not find them in it.
            part = Part(f"transformer.{module.removeprefix('transformer.')}", _spans(taken, rows))
            table[f"lora_unet_{name}"] = (*table.get(f"lora_unet_{name}", ()), part)
    return table


def _spans(rows: list[int], total: int) -> Rows:
    """Row numbers as runs of consecutive ones, in shares of all rows."""
    starts = [index for index, row in enumerate(rows) if index == 0 or row != rows[index - 1] + 1]
    runs = [(rows[start], rows[stop - 1] + 1) for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True)]
    return tuple((Fraction(first, total), Fraction(last, total)) for first, last in runs)


@functools.cache
def _converters() -> ModuleType:
    # diffusers imports optional libraries, and bitsandbytes, if installed, warns about kernels that nothing here runs.
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        from diffusers.loaders import lora_conversion_utils
    except ImportError as error:
        purpose = "mapping kohya's names to Stable Diffusion or FLUX without `base`"
        raise MissingExtraError.for_extra(extra="diffusers", purpose=purpose) from error
    finally:
        logging.disable(disabled)
    return lora_conversion_utils
