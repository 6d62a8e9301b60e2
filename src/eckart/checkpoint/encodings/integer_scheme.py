"""How GPTQ and AWQ store a weight, to be written: unsigned codes of 4 or 8 bits, zero points and scales by group.

Written codes are symmetric: every zero point is the middle, and groups are consecutive, which is valid for files of
either kind. GPTQ packs along the inputs, AWQ along the outputs in the order of its kernel.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from eckart.checkpoint.dtypes import DType
from eckart.checkpoint.encodings.scaled_scheme import in_words, part_name
from eckart.checkpoint.writer import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from eckart.linalg.scaled_codes import ScaledCodes

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # outputs of the fields of a word
LEAF = "weight"


@dataclass(frozen=True)
class IntegerScheme:
    """How one weight is stored.

    Attributes:
        name: name of the weight.
        shape: `(out_features, in_features)`.
        dtype: data type that weights are dequantized to.
        kind: `gptq` or `awq`.
        bits: of a code.
        parts: `qweight`, `qzeros`, `scales`, and `g_idx` if it is stored.
        less: what is subtracted from stored zero points: 1 in version 1 of GPTQ.
    """

    name: str
    shape: tuple[int, int]
    dtype: DType
    kind: Literal["gptq", "awq"]
    bits: Literal[4, 8]
    parts: tuple[TensorSpec, ...]
    less: int = 0

    def specs(self) -> list[TensorSpec]:
        """The tensors that store the weight; the codes come first."""
        return [replace(part, name=part_name(self.name, LEAF, part.name)) for part in self.parts]

    def quantize(self, weight: "Tensor", importance: "Tensor | None" = None) -> "ScaledCodes":
        """A weight with its nearest codes, and scales that serve the inputs by their second moments if given."""
        from eckart.linalg.scaled_codes import quantize

        scales, kind = self.parts[2].dtype.torch, "int4" if self.bits == 4 else "int8"
        types = {"scales": scales, "dtype": self.dtype.torch}
        return quantize(weight, kind=kind, block=(1, self._group), importance=importance, **types)

    def tensors(self, stored: "ScaledCodes") -> Iterator[tuple[str, "Tensor"]]:
        """The tensors of `specs` with the values of a quantized weight."""
        import torch

        if self.kind == "gptq":
            codes = in_words(stored.codes, self.bits).T
        else:
            codes = in_words(stored.codes.T.unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1), self.bits)
        zeros = torch.full((1, 32 // self.bits), 2 ** (self.bits - 1) - self.less, dtype=torch.uint8)
        values = [codes, in_words(zeros, self.bits).expand(self.parts[1].shape), stored.scales.T]
        if len(self.parts) > len(values):
            values.append((torch.arange(self.shape[1]) // self._group).to(self.parts[3].dtype.torch))
        for spec, value in zip(self.specs(), values, strict=True):
            yield spec.name, value.contiguous()

    @property
    def _group(self) -> int:
        return self.shape[1] // self.parts[2].shape[0]
