"""A checkpoint whose weights appear as the numbers that their codes and scales stand for."""

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.derived import DerivedCheckpoint
from eckart.checkpoint.encodings.mxfp4 import read_mxfp4
from eckart.checkpoint.encodings.scaled import read_scaled

_MARKERS = ("scaled_fp8",)  # of a whole file


def decoded(stored: Checkpoint) -> Checkpoint:
    """The checkpoint with its FP8, INT8 and MXFP4 weights dequantized when they are read; itself if it has none.

    Weights whose scales do not fit stay codes, which no operation takes for a weight.
    """
    found = {weight.parts[0]: weight for weight in (*read_scaled(stored)[0], *read_mxfp4(stored)[0])}
    if not found:
        return stored
    hidden = {part for weight in found.values() for part in weight.parts[1:]} | set(_MARKERS)
    infos = [found[name].info if name in found else info for name, info in stored.tensors.items() if name not in hidden]
    return DerivedCheckpoint(
        stored,
        {info.name: info for info in infos},
        computed={weight.info.name: weight.rows for weight in found.values()},
        parts={weight.info.name: weight.parts for weight in found.values()},
    )
