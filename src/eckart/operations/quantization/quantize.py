"""A model with its linear layers in NF4: a folder that transformers and bitsandbytes load, written as a stream."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eckart.engine import Execution
from eckart.operations.merging.plan import Source
from eckart.operations.model_writer.rewrite import Rewritten
from eckart.operations.quantization.plan import ALL_LINEAR, plan_quantize
from eckart.result import Skipped

DEFAULT_EXECUTION = Execution()


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


@dataclass(frozen=True)
class QuantizeResult:
    """A checkpoint whose linear layers are in NF4.

    Attributes:
        output: the folder.
        layers: those in NF4.
        tensors: of the model, each weight in NF4 counted once.
        params: of the model.
        nbytes: of all stored tensors.
        quantized_bytes: of those that the layers in NF4 are stored in: codes, scales, maps and states.
        skipped: linear layers that stay as they were, and what is not in the output, with the reason.
        seconds: wall time.
    """

    output: Path
    layers: list[QuantizedLayer]
    tensors: int
    params: int
    nbytes: int
    quantized_bytes: int
    skipped: list[Skipped]
    seconds: float

    @property
    def quantized_params(self) -> int:
        """Parameters in NF4."""
        return sum(math.prod(layer.shape) for layer in self.layers)

    @property
    def bytes_per_param(self) -> float:
        """Bytes that a parameter in NF4 takes, with its share of everything that is stored beside the codes."""
        return self.quantized_bytes / self.quantized_params

    @property
    def error(self) -> float:
        """‖W̃ − W‖_F / ‖W‖_F over all layers together."""
        size = sum(layer.fro_norm**2 for layer in self.layers)
        return math.sqrt(sum((layer.error * layer.fro_norm) ** 2 for layer in self.layers) / size) if size else 0.0

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
    target: Sequence[str] = ALL_LINEAR,
    exclude: Sequence[str] = (),
    block_size: int = 64,
    double: bool = False,
    dtype: torch.dtype | None = None,
    execution: Execution = DEFAULT_EXECUTION,
    force: bool = False,
) -> QuantizeResult:
    """Write `source` with its linear layers in NF4, bit for bit as bitsandbytes quantizes them on a CPU.

    Output layers (unless named), embeddings, norms and stacked experts stay as they are, as with transformers.

    Args:
        source: SOURCE text, or a transformers model.
        output: folder to write; what is finished is kept beside it until it is whole.
        target: layers to quantize, by PEFT's rules.
        exclude: layers not to; wins over `target`.
        block_size: values that share a scale.
        double: quantize the scales too.
        dtype: of all other floating tensors, and that weights are rounded to before they are quantized; None keeps the
            source's (float32 of quantized GGUF tensors).
        execution: workers, memory, progress, resume.
        force: replace an existing output.

    Returns:
        `QuantizeResult`: which layers, how large, and each one's measured error.

    Raises:
        MismatchError: the model is quantized already or would not load in 4 bits, or a pattern matches nothing that
            can be quantized.
        OptionError: bitsandbytes has no such block size.
        OutputError: the output exists or cannot be written.
        NotFiniteError: a weight to be quantized holds NaN or Inf.
    """
    began = time.monotonic()
    execution.check()
    plan = plan_quantize(source, target=target, exclude=exclude, block_size=block_size, double=double, dtype=dtype)
    facts = plan.write(Path(output), execution, force=force)
    layers = [_layer(tensor, facts[tensor.name]) for tensor in plan.quantized]
    return QuantizeResult(
        Path(output),
        layers,
        len(plan.tensors),
        sum(math.prod(info.shape) for info in plan.base.tensors.values()),
        plan.nbytes,
        sum(spec.nbytes for tensor in plan.quantized for spec in tensor.specs),
        plan.skipped,
        time.monotonic() - began,
    )


def _layer(tensor: Rewritten, facts: Mapping[str, float]) -> QuantizedLayer:
    view, size = tensor.views[0], facts["merged"]
    return QuantizedLayer(view.name, view.shape, math.sqrt(facts["error"] / size) if size else 0.0, math.sqrt(size))
