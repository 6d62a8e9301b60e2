"""GPTQ: integers of 2, 3, 4 or 8 bits, packed along the inputs, with a scale and a zero point for each group of them.

`qweight` is int32 `(in·bits/32, out)`, `qzeros` int32 `(groups, out·bits/32)`, `scales` `(groups, out)`, and `g_idx`
the group of each input, in any order if the model was quantized with `desc_act`. Files of version 1 store zero - 1.
Source: AutoGPTQ and GPTQModel.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from eckart.checkpoint.dtypes import FLOAT32, INT32
from eckart.checkpoint.encodings.awq import awq_kernel
from eckart.checkpoint.encodings.encoded import Encoded, StoredModule, Unreadable
from eckart.checkpoint.encodings.integer_scheme import IntegerScheme
from eckart.checkpoint.encodings.integers import dequantized, group_index, unpacked
from eckart.checkpoint.json_files import read_json_object

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("qweight", "qzeros", "scales", "g_idx")
_BITS = (2, 3, 4, 8)
_VERSIONS = {"gptq": 1, "gptq_v2": 2}
_CONFIG = "quantize_config.json"  # of checkpoints that AutoGPTQ wrote


def gptq(module: StoredModule) -> Iterator[Encoded | Unreadable]:
    """The weight of a module in GPTQ."""
    leaves = module.leaves
    if not leaves.keys() >= {"qweight", "qzeros", "scales"} or not _looks_like_gptq(module):
        return
    qweight, qzeros, scales = (leaves[part] for part in PARTS[:3])
    (words, outputs), groups = qweight.shape, scales.shape[0]
    bits = 32 * qzeros.shape[1] // outputs if outputs else 0
    inputs = 32 * words // bits if bits else 0
    stated = _stated(module)
    if bits not in _BITS or 32 * qzeros.shape[1] != outputs * bits or 32 * words != inputs * bits:
        reason = f"{module.shapes('qweight', 'qzeros', 'scales')} are not of 2, 3, 4 or 8 bits"
    elif qzeros.shape[0] != groups or not groups or inputs % groups:
        reason = f"{inputs} inputs do not divide into the groups of {module.shapes('qzeros', 'scales')}"
    elif "g_idx" in leaves and leaves["g_idx"].shape != (inputs,):
        reason = f"g_idx {list(leaves['g_idx'].shape)} is not one group for each of {inputs} inputs"
    elif stated.get("checkpoint_format", "gptq") not in _VERSIONS:
        reason = f"in the format {str(stated['checkpoint_format'])[:40]!r}, not gptq or gptq_v2"
    else:
        version = _version(stated)
        rows = partial(_rows, module, bits, version)
        parts = tuple(module.spec(part) for part in PARTS if part in leaves)

        def scheme(name: str) -> IntegerScheme:
            return IntegerScheme(
                *(name, (outputs, inputs), FLOAT32, "gptq", 4 if bits == 4 else 8, parts), less=int(version == 1)
            )

        is_written = bits in (4, 8) and version is not None
        shape, written = (outputs, inputs), scheme if is_written else None
        yield module.weight(shape, rows, encoding=f"gptq {bits}-bit", parts=PARTS, scheme=written)
        return
    yield module.unreadable(PARTS, f"GPTQ: {reason}; dequantize it with GPTQModel")


def _looks_like_gptq(module: StoredModule) -> bool:
    """Whether the codes are packed along the inputs, so that there is a column for each output."""
    qweight, qzeros, scales = (module.leaves[part] for part in PARTS[:3])
    is_2d = all(len(info.shape) == 2 for info in (qweight, qzeros, scales))
    is_int32 = qweight.dtype == qzeros.dtype == INT32
    if awq_kernel(module) == "gemv":  # small weights have the same shapes
        return False
    return is_2d and is_int32 and scales.dtype.is_floating_point and qweight.shape[1] == scales.shape[1]


def _stated(module: StoredModule) -> Mapping[str, Any]:
    """What the config, or the file that AutoGPTQ writes next to it, states about the encoding."""
    folder = module.stored.folder
    if not module.quantization() and folder is not None and (folder / _CONFIG).is_file():
        return {"quant_method": "gptq"} | read_json_object(folder / _CONFIG)
    return module.quantization()


def _version(stated: Mapping[str, Any]) -> int | None:
    """1 if zero - 1 is stored, 2 if zero is; None if nothing says so."""
    if "checkpoint_format" in stated:
        return _VERSIONS[stated["checkpoint_format"]]
    is_first = stated.get("quant_method") == "gptq" or "gptq" in str(stated.get("packing_format"))
    return 1 if is_first else None


def _rows(module: StoredModule, bits: int, version: int | None, start: int, stop: int) -> "Tensor":
    """Outputs `start` to `stop`, `(outputs, in)`, in float32: the product is exact."""
    scales = module.read("scales")
    groups, outputs = scales.shape
    zeros = unpacked(module.read("qzeros"), bits, outputs)
    zeros = _true_zeros(module, zeros, bits, version)[:, start:stop].T
    scales = scales[:, start:stop].T
    words = module.read("qweight")[:, start:stop].T
    inputs = words.shape[1] * 32 // bits
    codes = unpacked(words, bits, inputs)
    return dequantized(module, "scales", codes, scales, zeros, index=group_index(module, "g_idx", inputs, groups))


def _true_zeros(module: StoredModule, stored: "Tensor", bits: int, version: int | None) -> "Tensor":
    """The zero points, which version 1 stores less 1; of symmetric codes they show the version."""
    middle = 2 ** (bits - 1)
    if version is None:
        version = next((v for v, zero in ((1, middle - 1), (2, middle)) if bool((stored == zero).all())), None)
    if version is None:
        fault = (
            "are asymmetric zero points of GPTQ, and nothing says whether zero or zero - 1 is stored; add the "
            'checkpoint_format, "gptq" or "gptq_v2", to quantization_config in config.json'
        )
        raise module.refuse(PARTS[1], fault)
    return (stored + 1) & (2**bits - 1) if version == 1 else stored
