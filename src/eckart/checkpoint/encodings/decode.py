"""A checkpoint whose weights appear as the numbers that their codes and scales stand for."""

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.derived import DerivedCheckpoint
from eckart.checkpoint.encodings.table import found_in
from eckart.checkpoint.tying import tied_weights

_MARKERS = ("scaled_fp8",)  # of a whole file


def decoded(stored: Checkpoint) -> Checkpoint:
    """The checkpoint with its quantized weights dequantized when they are read; itself if it has none.

    Weights whose codes and scales do not fit together stay codes, which no operation takes for a weight.
    """
    found = {weight.parts[0]: weight for weight in found_in(stored)[0]}
    if not found:
        return stored
    hidden = {part for weight in found.values() for part in weight.parts[1:]} | set(_MARKERS)
    infos = [found[name].info if name in found else info for name, info in stored.tensors.items() if name not in hidden]
    tensors = {info.name: info for info in infos}
    tied = {absent: owner for absent, owner in stored.tied.items() if absent not in tensors and owner in tensors}
    return DerivedCheckpoint(
        stored,
        tensors,
        tied=tied_weights(tensors, stored.config) | tied,
        encoded={weight.info.name: weight for weight in found.values()},
    )
