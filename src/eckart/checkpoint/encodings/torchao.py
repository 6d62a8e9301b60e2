"""What torchao states about a quantized weight in the header of its file: JSON under the name of the weight.

Source: torchao's `flatten_tensor_state_dict`.
"""

from eckart.checkpoint.encodings.encoded import StoredModule
from eckart.checkpoint.json_files import parse_json

CODES, SCALE, SECOND, ZERO = "_weight_qdata", "_weight_scale", "_weight_per_tensor_scale", "_weight_zero_point"
_READ = ("Float8Tensor", "Int8Tensor", "IntxUnpackedToInt8Tensor", "Int4Tensor", "MXTensor", "NVFP4Tensor")


def torchao_fault(module: StoredModule) -> str | None:
    """Why codes that torchao wrote are not what their names and shapes say; None if they are."""
    if CODES not in module.leaves:
        return None
    name = f"{module.name}.weight"
    texts = [texts[name] for texts in module.stored.metadata.values() if name in texts]
    try:
        stated = [parse_json(text) for text in texts]
    except ValueError:
        return "of torchao, whose entry in the header is not JSON"
    kinds = [each.get("_type") for each in stated if isinstance(each, dict)]
    if any(kind not in _READ for kind in kinds):
        return f"of torchao, {str(kinds[0])[:40]}, in the order of a kernel; dequantize it with torchao"
    data = [each.get("_data") for each in stated if isinstance(each, dict)]
    if any(isinstance(each, dict) and each.get("is_swizzled_scales") for each in data):
        return "of torchao, with scales in the order of a kernel; save it with is_swizzled_scales=False"
    return None
