"""Codes and scales of encodings that are recognized and not read: they are never taken for weights."""

import re

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.dtypes import BOOL, INT64, UINT64
from eckart.checkpoint.encodings.encoded import StoredModule, is_low_precision, modules_of

# The last part of a name that only this encoding has -> the encoding, and what dequantizes it.
_BITSANDBYTES = "bitsandbytes: dequantize it with transformers' model.dequantize()"
_SIGNS = {
    **dict.fromkeys(("qweight", "qzeros", "g_idx"), "GPTQ, AWQ or a relative of them: dequantize it with GPTQModel"),
    "weight_packed": "compressed-tensors: dequantize it with llm-compressor",
    "weight_scale_2": "NVFP4: dequantize it with NVIDIA ModelOpt",
    "comfy_quant": "ComfyUI: dequantize it with comfy-kitchen",
    "SCB": _BITSANDBYTES,
    **dict.fromkeys(("absmax", "quant_map", "nested_absmax", "nested_quant_map"), _BITSANDBYTES),
    **dict.fromkeys(("bitsandbytes__nf4", "bitsandbytes__fp4"), _BITSANDBYTES),
}
# The same of names that dense models have too: they mean an encoding if there are codes.
_SIGNS_NEXT_TO_CODES = {
    "weight_scales": "EETQ: dequantize it with EETQ",
    "trellis": "EXL3: dequantize it with exllamav3",
    "q_weight": "EXL2: dequantize it with exllamav2",
    "codebooks": "AQLM: dequantize it with aqlm",
    "Qidxs": "QuIP#: dequantize it with quip-sharp",
    "centroids": "VPTQ: dequantize it with vptq",
    "wscales": "SVDQuant: dequantize it with nunchaku",
    **dict.fromkeys(("W_q", "nbits"), "HQQ: dequantize it with hqq"),
    "_data": "quanto: dequantize it with optimum-quanto",
    "_weight_qdata": "torchao: dequantize it with torchao",
}
_MLX = {"scales", "biases"}
_SCALE = re.compile(r"scal(e|ing)|absmax|amax|zero|codebook|scb|shift|biases", re.IGNORECASE)
# Names that only scales of weights have, also where their codes are missing.
_ALONE = re.compile(
    r".*weight_(scale(_inv|_2)?|global_scale|zero_point)|.*_proj_scales?(_inv)?|q?scale_weight|_scale|_shift"
)
_NO_CODES = (INT64, UINT64, BOOL)  # of indices and masks


def undecoded(checkpoint: Checkpoint) -> dict[str, str]:
    """Tensors that are parts of a quantized weight, and mean nothing alone -> why they are not read as the weight."""
    found: dict[str, str] = {}
    if any(map(is_low_precision, checkpoint.tensors.values())):
        from eckart.checkpoint.encodings.table import found_in

        found = {part: fault.reason for fault in found_in(checkpoint)[1] for part in fault.parts}
    for module in modules_of(checkpoint):
        if reason := _unknown_encoding(module):
            names = [info.name for leaf, info in module.leaves.items() if not leaf.endswith("bias")]
            owner = module.name.removesuffix(".quant_state")  # X.weight of X.weight.absmax
            for name in (*names, *([owner] if owner in checkpoint.tensors else [])):
                found.setdefault(name, reason)
    for name in checkpoint.tensors:
        if _ALONE.fullmatch(name.rpartition(".")[2]):
            found.setdefault(name, "a scale whose codes are missing or not recognized")
    return {name: f"quantized storage: {reason}" for name, reason in found.items()}


def _unknown_encoding(module: StoredModule) -> str | None:
    """What codes and scales of a module are a sign of; None if there are not both."""
    if module.leaves.keys() >= _MLX:
        return "MLX: dequantize it with mlx_lm.convert"
    sign = next((words for leaf, words in _SIGNS.items() if leaf in module.leaves), None)
    if sign or not module.has_codes:
        return sign
    sign = next((words for leaf, words in _SIGNS_NEXT_TO_CODES.items() if leaf in module.leaves), None)
    scales = [leaf for leaf in module.leaves if _SCALE.search(leaf)]
    codes = [
        leaf
        for leaf, info in module.leaves.items()
        if is_low_precision(info) and info.dtype not in _NO_CODES and len(info.shape) > 1
    ]
    scales = [leaf for leaf in scales if leaf != codes[0]] if codes else []
    if sign or not scales:
        return sign
    what = f"{codes[0]}, {module.leaves[codes[0]].dtype}, with {scales[0]}"
    return f"{what}, of an unknown encoding; dequantize it with the tool that wrote it"
