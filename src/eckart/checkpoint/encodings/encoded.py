"""One weight that is stored as codes and scales."""

from dataclasses import dataclass

from eckart.checkpoint.checkpoint import TensorInfo
from eckart.checkpoint.derived import Rows


@dataclass(frozen=True)
class Encoded:
    """A weight that is stored as codes and scales.

    Attributes:
        info: header of the weight that they stand for; `quantization` names the encoding.
        parts: the stored tensors, codes first.
        rows: entries `start` to `stop` of the weight's first dimension, computed from theirs.
    """

    info: TensorInfo
    parts: tuple[str, ...]
    rows: Rows
