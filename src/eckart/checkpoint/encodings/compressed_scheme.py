"""How compressed-tensors stores a weight in int4 (`pack-quantized`) or FP8 (`float-quantized`), to be written.

int4: eight codes plus 8 in each int32, the first in the lowest bits, and a scale for each group of inputs.
FP8: E4M3 with a scale for each output.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from eckart.checkpoint.dtypes import FLOAT8_E4M3FN, INT32, INT64, DType
from eckart.checkpoint.writer import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from eckart.linalg.scaled_codes import ScaledCodes

FORMATS = {"int4": "pack-quantized", "fp8": "float-quantized"}
GROUPS = (128, 64, 32)  # of int4, which vLLM's kernels take
_PER_WORD = 8


@dataclass(frozen=True)
class CompressedScheme:
    """How one weight is stored.

    Attributes:
        name: name of the weight.
        shape: `(out_features, in_features)`.
        dtype: data type of the scales, and that weights are dequantized to.
        kind: `int4` or `fp8`.
        group: inputs that share a scale.
    """

    name: str
    shape: tuple[int, int]
    dtype: DType
    kind: Literal["int4", "fp8"]
    group: int

    def specs(self) -> list[TensorSpec]:
        """The tensors that store the weight; the codes come first."""
        rows, columns = self.shape
        scale = TensorSpec(f"{self.name}_scale", (rows, columns // self.group), self.dtype)
        if self.kind == "fp8":
            return [TensorSpec(self.name, self.shape, FLOAT8_E4M3FN), scale]
        packed = TensorSpec(f"{self.name}_packed", (rows, columns // _PER_WORD), INT32)
        return [packed, scale, TensorSpec(f"{self.name}_shape", (2,), INT64)]

    def quantize(self, weight: "Tensor") -> "ScaledCodes":
        """A weight with its nearest codes."""
        from eckart.linalg.scaled_codes import quantize

        return quantize(weight, kind=self.kind, group=self.group, dtype=self.dtype.torch)

    def tensors(self, stored: "ScaledCodes") -> Iterator[tuple[str, "Tensor"]]:
        """The tensors of `specs` with the values of a quantized weight."""
        import torch

        if self.kind == "fp8":
            yield self.name, stored.levels[stored.codes.int()].to(torch.float8_e4m3fn)
        else:
            shifts = 4 * torch.arange(_PER_WORD)
            words = (stored.codes.view(len(stored.codes), -1, _PER_WORD).long() << shifts).sum(2)
            yield f"{self.name}_packed", words.to(torch.int32)
            yield f"{self.name}_shape", torch.tensor(self.shape, dtype=torch.int64)
        yield f"{self.name}_scale", stored.scales


def common_group(inputs: Iterable[int]) -> int:
    """The largest group that divides every number of inputs which one divides."""
    sizes = [size for size in inputs if size % GROUPS[-1] == 0]
    return next((group for group in GROUPS if all(size % group == 0 for size in sizes)), GROUPS[-1])


def compressed_config(kind: str, group: int, ignore: list[str]) -> dict[str, Any]:
    """The quantization config that transformers and vLLM read.

    Args:
        kind: `int4` or `fp8`.
        group: inputs that share a scale; of FP8 all inputs do.
        ignore: linear modules that stay as they are.
    """
    by_group = {"strategy": "group", "group_size": group} if kind == "int4" else {"strategy": "channel"}
    weights = {"num_bits": 4 if kind == "int4" else 8, "type": "int" if kind == "int4" else "float"}
    return {
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**weights, "symmetric": True, "dynamic": False, **by_group},
                "input_activations": None,
                "output_activations": None,
            }
        },
        "format": FORMATS[kind],
        "ignore": ignore,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }
