"""The encodings that a dense model can be quantized to, besides NF4, and the config that says so.

`fp8-block` is the format of DeepSeek-V3: E4M3 with a float32 scale for each 128×128 block. The others are those of
compressed-tensors, which transformers and vLLM load: `int4`, `int8` in groups of inputs, `fp8` with a scale for each
output, `mxfp4` and `nvfp4`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eckart.checkpoint.dtypes import FLOAT8_E4M3FN, FLOAT32, INT32, INT64, UINT8, DType
from eckart.checkpoint.encodings.encoded import PartNames
from eckart.checkpoint.encodings.scaled_scheme import ScaledScheme
from eckart.checkpoint.writer import TensorSpec

if TYPE_CHECKING:
    from eckart.linalg.scaled_codes import LevelKind

GROUPS = (128, 64, 32)  # of integers, which vLLM's kernels take
_BLOCK = 128
_DIRECT = PartNames("weight", "weight", "weight_scale")
_INVERSE = PartNames("weight", "weight", "weight_scale_inv")
_PACKED = PartNames("weight", "weight_packed", "weight_scale")
_PACKED_TWICE = PartNames("weight", "weight_packed", "weight_scale", "weight_global_scale")


@dataclass(frozen=True)
class StorageTarget:
    """One encoding.

    Attributes:
        levels: kind of the codes.
        names: of the tensors.
        codes: their data type.
        scale: data type of the scales; None for that of the model.
        block: outputs and inputs that share a scale; 0 inputs for all of them, None for a group that suits all layers.
        form: the format in a config of compressed-tensors; None for transformers' `fp8`.
        strategy: of that config.
    """

    levels: "LevelKind"
    names: PartNames
    codes: DType
    scale: DType | None
    block: tuple[int, int | None]
    form: str | None
    strategy: str = ""


TARGETS = {
    "int4": StorageTarget("int4", _PACKED, INT32, None, (1, None), "pack-quantized", "group"),
    "int8": StorageTarget("int8", _PACKED, INT32, None, (1, None), "pack-quantized", "group"),
    "fp8": StorageTarget("e4m3", _DIRECT, FLOAT8_E4M3FN, None, (1, 0), "float-quantized", "channel"),
    "fp8-block": StorageTarget("e4m3", _INVERSE, FLOAT8_E4M3FN, FLOAT32, (_BLOCK, _BLOCK), None),
    "mxfp4": StorageTarget("e2m1", _PACKED, UINT8, UINT8, (1, 32), "mxfp4-pack-quantized", "group"),
    "nvfp4": StorageTarget(
        "e2m1", _PACKED_TWICE, UINT8, FLOAT8_E4M3FN, (1, 16), "nvfp4-pack-quantized", "tensor_group"
    ),
}


def why_not_in_blocks(to: str, shape: tuple[int, int]) -> str | None:
    """Why a layer `(out_features, in_features)` does not divide into the blocks of an encoding; None if it does."""
    rows, columns = TARGETS[to].block
    columns = GROUPS[-1] if columns is None else columns
    if rows > 1 and any(
        entries > size and entries % size for entries, size in zip(shape, (rows, columns), strict=True)
    ):
        # transformers takes the last block to be as large as the others, without a word, where it dequantizes.
        return f"{shape[0]}×{shape[1]} weights are not blocks of {rows}×{columns}"
    return f"{shape[1]} inputs are not groups of {columns}" if rows == 1 and columns and shape[1] % columns else None


def common_group(inputs: Iterable[int]) -> int:
    """The largest group that divides every number of inputs which one divides."""
    sizes = [size for size in inputs if size % GROUPS[-1] == 0]
    return next((group for group in GROUPS if all(size % group == 0 for size in sizes)), GROUPS[-1])


def target_scheme(to: str, name: str, shape: tuple[int, int], dtype: DType, group: int) -> ScaledScheme:
    """How a weight is stored.

    Args:
        to: a key of `TARGETS`.
        name: of the weight.
        shape: `(out_features, in_features)`.
        dtype: of the weight.
        group: inputs that share a scale, where the encoding leaves it open.
    """
    target = TARGETS[to]
    rows, columns = target.block
    block = rows, group if columns is None else columns or shape[1]
    counts = tuple(math.ceil(entries / size) for entries, size in zip(shape, block, strict=True))
    names, is_packed = target.names, target.codes == INT32
    per_entry = 32 // int(target.levels[3:]) if is_packed else 2 if target.levels == "e2m1" else 1
    return ScaledScheme(
        name,
        shape,
        dtype,
        to,
        names.weight,
        target.levels,
        block,
        codes=TensorSpec(names.codes, (shape[0], shape[1] // per_entry), target.codes),
        scale=TensorSpec(names.scale, counts, target.scale or dtype),
        second=TensorSpec(names.second, (1,), FLOAT32) if names.second else None,
        sizes=TensorSpec(f"{names.weight}_shape", (2,), INT64) if is_packed else None,
        divides=True,
    )


def target_config(to: str, group: int, ignore: list[str]) -> dict[str, Any]:
    """The quantization config that transformers and vLLM read.

    Args:
        to: a key of `TARGETS`.
        group: inputs that share a scale, where the encoding leaves it open.
        ignore: linear modules that stay as they are.
    """
    target = TARGETS[to]
    if target.form is None:
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [_BLOCK, _BLOCK],
            "modules_to_not_convert": ignore,
        }
    weights: dict[str, Any] = {
        "num_bits": 4 if target.levels in ("int4", "e2m1") else 8,
        "type": "int" if target.levels.startswith("int") else "float",
        "strategy": target.strategy,
        "symmetric": True,
        "dynamic": False,
    }
    if target.strategy != "channel":
        weights["group_size"] = target.block[1] or group
    if target.levels == "e2m1":
        weights["scale_dtype"] = "torch.uint8" if target.scale == UINT8 else "torch.float8_e4m3fn"
    return {
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
            }
        },
        "format": target.form,
        "ignore": ignore,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }
