"""The encodings that are read, and the weights of a checkpoint that are stored in one of them.

To add one: a function that finds its weights among the tensors of a module, in a file of its own, and a line here.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.encodings.awq import awq
from eckart.checkpoint.encodings.awq_gemv import awq_gemv
from eckart.checkpoint.encodings.comfyui import MARKER, comfyui_fault, stated_in_headers, stated_of
from eckart.checkpoint.encodings.compressed import compressed
from eckart.checkpoint.encodings.encoded import (
    Encoded,
    Encoding,
    StoredModule,
    Unreadable,
    is_low_precision,
    modules_of,
)
from eckart.checkpoint.encodings.fp4 import fp4
from eckart.checkpoint.encodings.gptq import gptq
from eckart.checkpoint.encodings.hqq import hqq
from eckart.checkpoint.encodings.mlx import mlx
from eckart.checkpoint.encodings.mxfp4 import mxfp4
from eckart.checkpoint.encodings.nvfp4 import nvfp4
from eckart.checkpoint.encodings.quanto import quanto
from eckart.checkpoint.encodings.scaled import scaled
from eckart.checkpoint.encodings.tiled import TILED, tiled
from eckart.checkpoint.encodings.torchao import torchao_fault
from eckart.checkpoint.encodings.torchao_int4 import torchao_int4

ENCODINGS: tuple[Encoding, ...] = (
    *(scaled, mxfp4, nvfp4, gptq, awq, awq_gemv, compressed, mlx, hqq, fp4, quanto, torchao_int4),
)
# Of a module's inputs and outputs and of caches, and of the layout in memory: they do not change what a weight is.
_BESIDE = re.compile(
    r"(.*_)?(input|output|activation|[kqv]|kv|prob)_(global_)?(scale|zero_point)(_ub)?|scale_input|qscale_act"
    rf"|weight_format|{MARKER}"
)
_PART_OF_CODES = re.compile(r"scal(e|ing)|zero|amax|SCB|g_idx|perm|smooth|codebook|rotat|hadamard", re.IGNORECASE)


def found_in(stored: Checkpoint) -> tuple[list[Encoded], list[Unreadable]]:
    """The weights of a checkpoint that are stored as codes, and those that are recognized and cannot be read."""
    weights: list[Encoded] = []
    faults: list[Unreadable] = []
    beside: dict[str, list[str]] = {}
    in_headers = stated_in_headers(stored)
    for module in modules_of(stored):
        beside[module.name] = [info.name for leaf, info in module.leaves.items() if _BESIDE.fullmatch(leaf)]
        if not module.has_codes:
            continue
        stated = stated_of(module, in_headers)
        if stated and stated.get("format") in TILED:
            found = [*tiled(module, stated["format"])]
        else:
            found = [each for encoding in ENCODINGS for each in encoding(module)]
        obstacle = _obstacle(module, found) or comfyui_fault(stated) if found else None
        for each in found:
            if isinstance(each, Unreadable):
                faults.append(each)
            elif obstacle:
                faults.append(Unreadable(each.parts, f"{each.info.quantization}, {obstacle}"))
            else:
                weights.append(each)
    # Of the first weight of a module, with which they are copied or left out.
    return [replace(each, parts=(*each.parts, *beside.pop(_module(each), ()))) for each in weights], faults


def _obstacle(module: StoredModule, found: Sequence[Encoded | Unreadable]) -> str | None:
    """Why codes of a module do not stand for its weights alone, or None."""
    used = {part for each in found for part in each.parts}
    unknown = [
        leaf
        for leaf, info in module.leaves.items()
        if not (info.name in used or leaf.endswith("bias") or _BESIDE.fullmatch(leaf))
        and (is_low_precision(info) or _PART_OF_CODES.search(leaf))
    ]
    if unknown:
        return f"with {', '.join(unknown)}, which is not part of what eckart reads"
    if module.quantization().get("transform_config"):
        return "rotated by the transform_config of compressed-tensors; dequantize it with llm-compressor"
    return torchao_fault(module)


def _module(weight: Encoded) -> str:
    return weight.info.name.rpartition(".")[0]
