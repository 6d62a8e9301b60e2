"""A checkpoint whose weights appear as the numbers that their codes and scales stand for."""

from dataclasses import replace
from typing import TYPE_CHECKING

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.derived import DerivedCheckpoint
from eckart.checkpoint.encodings.encoded import Encoded, is_low_precision
from eckart.checkpoint.encodings.nf4_scheme import has_nf4
from eckart.checkpoint.layouts import conv1d_tensors
from eckart.checkpoint.tying import tied_weights

if TYPE_CHECKING:
    from torch import Tensor

_MARKERS = ("scaled_fp8",)  # of a whole file
_AS_LINEAR = ("gptq", "llm.int8", "fp4")  # store the weight of a Conv1D as that of a Linear


def decoded(stored: Checkpoint) -> Checkpoint:
    """The checkpoint with its quantized weights dequantized when they are read; itself if it has none.

    Weights whose codes and scales do not fit together stay codes, which no operation takes for a weight.
    """
    if has_nf4(stored):
        from eckart.checkpoint.encodings.nf4 import Nf4Checkpoint

        return Nf4Checkpoint(stored)
    if not any(map(is_low_precision, stored.tensors.values())):
        return stored
    from eckart.checkpoint.encodings.table import found_in

    found = {weight.parts[0]: weight for weight in found_in(stored)[0]}
    if not found:
        return stored
    hidden = {part for weight in found.values() for part in weight.parts[1:]} | set(_MARKERS)
    infos = [found[name].info if name in found else info for name, info in stored.tensors.items() if name not in hidden]
    tensors = {info.name: info for info in infos}
    tied = {absent: owner for absent, owner in stored.tied.items() if absent not in tensors and owner in tensors}
    weights = {weight.info.name: weight for weight in found.values()}
    result = DerivedCheckpoint(stored, tensors, tied=tied_weights(tensors, stored.config) | tied, encoded=weights)
    turned = {name: _turned(weights[name]) for name in conv1d_tensors(result) & weights.keys()}
    if not turned:
        return result
    tensors |= {name: weight.info for name, weight in turned.items()}
    return DerivedCheckpoint(stored, tensors, tied=result.tied, encoded=weights | turned)


def _turned(weight: Encoded) -> Encoded:
    """The weight of a Conv1D, (in, out) in the model, from how it is stored."""
    if not str(weight.info.quantization).startswith(_AS_LINEAR):
        return replace(weight, scheme=None)  # schemes are of (out, in)
    outputs, inputs = weight.info.shape

    def rows(start: int, stop: int) -> "Tensor":
        return weight.rows(0, outputs)[:, start:stop].T.contiguous()

    return replace(weight, info=replace(weight.info, shape=(inputs, outputs)), rows=rows)
