"""Codes and scales of encodings that are recognized and not read: they are never taken for weights."""

from collections.abc import Mapping

from eckart.checkpoint.checkpoint import Checkpoint, TensorInfo
from eckart.checkpoint.encodings.mxfp4 import BLOCKS, SCALES, read_mxfp4
from eckart.checkpoint.encodings.scaled import FP8, read_scaled, scale_of

# A tensor that only this encoding has -> the encoding, and what dequantizes it.
_SIGNS = {
    "qweight": "GPTQ or AWQ: dequantize it with GPTQModel",
    "weight_packed": "compressed-tensors: dequantize it with llm-compressor",
    "weight_scale_2": "NVFP4: dequantize it with NVIDIA ModelOpt",
    "absmax": "bitsandbytes: dequantize it with transformers' model.dequantize()",
    "SCB": "LLM.int8 of bitsandbytes: dequantize it with transformers' model.dequantize()",
    "weight_scale": "codes with scales",
    "weight_scale_inv": "codes with scales",
}
# The same of names that dense models have too: they mean an encoding if there are codes.
_SIGNS_NEXT_TO_CODES = {
    "weight_zero_point": "compressed-tensors with zero points: dequantize it with llm-compressor",
    "W_q": "HQQ: dequantize it with hqq",
    "_data": "quanto: dequantize it with optimum-quanto",
    "scale_weight": "codes with scales",
}
_MLX = {"weight", "scales", "biases"}


def undecoded(checkpoint: Checkpoint) -> dict[str, str]:
    """Tensors that are parts of a quantized weight, and mean nothing alone -> why they are not read as the weight."""
    tensors = checkpoint.tensors
    faults = read_scaled(checkpoint)[1] | read_mxfp4(checkpoint)[1]
    leaves: dict[str, set[str]] = {}
    for name in tensors:
        module, _, leaf = name.rpartition(".")
        leaves.setdefault(module, set()).add(leaf)
    with_codes = {name for name, info in tensors.items() if info.dtype in FP8 or not info.dtype.is_floating_point}
    with_codes |= {name.rpartition(".")[0] for name in with_codes}
    found = {module: _encoding(each, has_codes=module in with_codes) for module, each in leaves.items()}
    encodings = {module: encoding for module, encoding in found.items() if encoding}
    result = {}
    for name, info in tensors.items():
        module, _, leaf = name.rpartition(".")
        encoding = encodings.get(module) or encodings.get(name)
        if not leaf.endswith("bias") and (name in faults or encoding or _is_part(info, tensors)):
            result[name] = f"quantized storage: {faults.get(name) or encoding or 'codes with scales'}"
    return result


def _encoding(leaves: set[str], *, has_codes: bool) -> str | None:
    if has_codes and leaves >= _MLX:
        return "MLX: dequantize it with mlx_lm.convert"
    signs = _SIGNS_NEXT_TO_CODES | _SIGNS if has_codes else _SIGNS
    return next((words for sign, words in signs.items() if sign in leaves), None)


def _is_part(info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether a tensor is codes next to a scale, or the scale next to codes, by its name alone."""
    if scale_of(info, tensors) or "quant_state" in info.name:
        return True
    pairs = ((BLOCKS, SCALES), (SCALES, BLOCKS), ("_scale", ""), ("_scale_inv", ""))
    for ending, other in pairs:
        owner = tensors.get(f"{info.name.removesuffix(ending)}{other}") if info.name.endswith(ending) else None
        if owner is not None and (other or scale_of(owner, tensors)):
            return True
    return False
