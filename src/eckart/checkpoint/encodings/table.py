"""The encodings that are read, and the weights of a checkpoint that are stored in one of them.

To add one: a function that finds its weights among the tensors of a module, in a file of its own, and a line here.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.encodings.awq import awq
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
from eckart.checkpoint.encodings.scaled import scaled

ENCODINGS: tuple[Encoding, ...] = (scaled, mxfp4, nvfp4, gptq, awq, compressed, mlx, hqq, fp4)
# Of a module's inputs and outputs and of caches, and of the layout in memory: they do not change what a weight is.
_BESIDE = re.compile(r"(.*_)?(input|output|activation|[kqv]|prob)_(global_)?scale|scale_input|qscale_act|weight_format")
_PART_OF_CODES = re.compile(r"scal(e|ing)|zero|amax|SCB|g_idx|perm|smooth|codebook|rotat|hadamard", re.IGNORECASE)


def found_in(stored: Checkpoint) -> tuple[list[Encoded], list[Unreadable]]:
    """The weights of a checkpoint that are stored as codes, and those that are recognized and cannot be read."""
    weights, faults = [], []
    for module in modules_of(stored):
        for found in _found_in(module) if module.has_codes else ():
            if isinstance(found, Encoded):
                weights.append(found)
            else:
                faults.append(found)
    return weights, faults


def _found_in(module: StoredModule) -> Iterator[Encoded | Unreadable]:
    """What is stored in one module; what none of its weights uses may be part of each of them."""
    found = [each for encoding in ENCODINGS for each in encoding(module)]
    used = {part for each in found for part in each.parts}
    rest = {leaf: info for leaf, info in module.leaves.items() if info.name not in used and not leaf.endswith("bias")}
    beside = tuple(info.name for leaf, info in rest.items() if _BESIDE.fullmatch(leaf))
    unknown = [
        leaf
        for leaf, info in rest.items()
        if info.name not in beside and (is_low_precision(info) or _PART_OF_CODES.search(leaf))
    ]
    for each in found:
        if isinstance(each, Unreadable):
            yield each
        elif unknown:
            reason = f"{each.info.quantization} with {', '.join(unknown)}, which is not part of what eckart reads"
            yield Unreadable(each.parts, reason)
        else:
            yield replace(each, parts=(*each.parts, *beside))
            beside = ()
