"""A model with its linear layers in NF4: a folder that transformers and bitsandbytes load, written as a stream."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.engine import Execution
from eckart.formats.sources import Source
from eckart.operations.model_writer.plan import OutputTensor
from eckart.operations.quantization.plan import ALL_LINEAR, plan_quantize
from eckart.result import Result, Skipped

if TYPE_CHECKING:
    import torch

    from eckart.checkpoint import DType


@dataclass(frozen=True)
class QuantizedLayer:
    """One weight in NF4.

    Attributes:
        name: of the module.
        shape: `(out_features, in_features)`.
        error: ‖W̃ − W‖_F / ‖W‖_F before W̃ is rounded to its dtype, in float64; 0 for a zero matrix.
        fro_norm: ‖W‖_F.
    """

    name: str
    shape: tuple[int, int]
    error: float
    fro_norm: float


@dataclass(frozen=True, repr=False)
class QuantizeResult(Result):
    """A model whose linear layers are in NF4.

    Attributes:
        output: the folder.
        layers: the layers in NF4.
        tensors: number of tensors in the model; a weight in NF4 counts as one.
        params: parameters of the model.
        nbytes: of all stored tensors.
        quantized_bytes: of the tensors that store the layers in NF4: codes, scales, maps and states.
        skipped: linear layers that stay as they are, and what the output does not contain, and why.
        seconds: wall time.
    """

    output: Path
    layers: list[QuantizedLayer]
    tensors: int
    params: int
    nbytes: int
    quantized_bytes: int
    skipped: Sequence[Skipped]
    seconds: float

    @property
    def quantized_params(self) -> int:
        """Parameters in NF4."""
        return sum(math.prod(layer.shape) for layer in self.layers)

    @property
    def bytes_per_param(self) -> float:
        """Bytes per parameter in NF4, with its share of the scales, maps and states."""
        return self.quantized_bytes / self.quantized_params

    @property
    def error(self) -> float:
        """‖W̃ − W‖_F / ‖W‖_F over all layers together."""
        size = math.hypot(*(layer.fro_norm for layer in self.layers))
        return math.hypot(*(layer.error * layer.fro_norm for layer in self.layers)) / size if size else 0.0

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer in NF4."""
        return [
            {"name": layer.name, "shape": list(layer.shape), "error": layer.error, "fro_norm": layer.fro_norm}
            for layer in self.layers
        ]

    def to_json(self) -> dict[str, Any]:
        """The `eckart-quantize/2` object."""
        return {
            "format": "eckart-quantize/2",
            "tensors": self.tensors,
            "quantized": len(self.layers),
            "params": self.params,
            "quantized_params": self.quantized_params,
            "bytes": self.nbytes,
            "bytes_per_quantized_param": self.bytes_per_param,
            "error": self.error,
            "layers": [{"name": layer.name, "shape": list(layer.shape), "error": layer.error} for layer in self.layers],
            "skipped": [item.to_json() for item in self.skipped],
            "seconds": self.seconds,
        }


def quantize(
    source: Source,
    output: str | Path,
    *,
    target: str | Sequence[str] = ALL_LINEAR,
    exclude: str | Sequence[str] = (),
    block_size: int = 64,
    double: bool = False,
    dtype: DType | torch.dtype | str | None = None,
    execution: Execution = Execution(),
    force: bool = False,
) -> QuantizeResult:
    """Write `source` with its linear layers in NF4, bit for bit as bitsandbytes quantizes them on the CPU.

    Output layers (unless targeted), embeddings, norms and stacked experts stay as they are, as in transformers.

    Args:
        source: SOURCE text, or a transformers model.
        output: folder to write; finished tensors are stored next to it until it is complete.
        target: layers to quantize, by PEFT's rules; a string is one pattern.
        exclude: layers to leave alone; takes precedence over `target`.
        block_size: values that share a scale.
        double: quantize the scales too.
        dtype: dtype of all other floating-point tensors, to which weights are rounded before they are quantized, by
            name or as torch dtype; None keeps the source's (float32 for quantized GGUF tensors).
        execution: workers, memory, progress, resume.
        force: replace an existing output.

    Returns:
        `QuantizeResult`: which layers, how large, and each one's measured error.

    Raises:
        MismatchError: the model is quantized already or would not load in 4 bits, or a pattern matches nothing that
            can be quantized.
        OptionError: bitsandbytes has no such block size, or `source` is an adapter.
        OutputError: the output exists or cannot be written.
        NotFiniteError: a weight to be quantized contains NaN or Inf.
    """
    began = time.monotonic()
    execution.check()
    plan = plan_quantize(source, target=target, exclude=exclude, block_size=block_size, double=double, dtype=dtype)
    plan.check_output(Path(output), force=force)
    from eckart.operations.model_writer.writer import ModelWriter  # here: a refusal needs no torch

    facts = ModelWriter(plan).write(Path(output), execution, force=force)
    layers = [_layer(tensor, facts[tensor.name]) for tensor in plan.quantized]
    return QuantizeResult(
        Path(output),
        layers,
        plan.count,
        sum(math.prod(info.shape) for info in plan.base.tensors.values()),
        plan.nbytes,
        sum(spec.nbytes for tensor in plan.quantized for spec in tensor.specs),
        plan.skipped,
        time.monotonic() - began,
    )


def _layer(tensor: OutputTensor, facts: Mapping[str, float]) -> QuantizedLayer:
    view, size = tensor.views[0], facts["merged"]
    return QuantizedLayer(view.name, view.shape, facts["error"] / size if size else 0.0, size)
