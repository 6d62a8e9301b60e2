"""A model with its linear layers in four or eight bits: a folder that transformers loads, written as a stream."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.checkpoint.manifest import listed_files, write_manifest
from eckart.engine import Execution
from eckart.engine.working_folder import remove
from eckart.errors import OptionError
from eckart.formats import load_adapter
from eckart.formats.sources import Source
from eckart.operations.correction.correct import correct as correct_model
from eckart.operations.model_writer.plan import OutputTensor
from eckart.operations.quantization.plan import ALL_LINEAR, DEFAULT_BLOCK, Encoding, plan_quantize
from eckart.result import Result, Skipped

if TYPE_CHECKING:
    import torch

    from eckart.adapter import Adapter
    from eckart.checkpoint import DType
    from eckart.operations.adapter_result import AdapterResult
    from eckart.operations.moments import Moments

CORRECTION = "correction"  # folder in the output


@dataclass(frozen=True)
class QuantizedLayer:
    """One quantized weight.

    Attributes:
        name: of the module.
        shape: `(out_features, in_features)`.
        error: ‖W̃ − W‖_F / ‖W‖_F before W̃ is rounded to its dtype, in float64; 0 for a zero matrix.
        fro_norm: ‖W‖_F.
        output_error: error of the layer's outputs on the calibration text, ‖(W̃ − W)·C^½‖_F / ‖W·C^½‖_F; None without.
        nearest_output_error: the same with the nearest codes.
        damping: with which the codes were calibrated; None if they are the nearest ones.
    """

    name: str
    shape: tuple[int, int]
    error: float
    fro_norm: float
    output_error: float | None = None
    nearest_output_error: float | None = None
    damping: float | None = None


@dataclass(frozen=True, repr=False)
class QuantizeResult(Result):
    """A model whose linear layers are quantized.

    Attributes:
        output: the folder.
        encoding: `nf4`, `int4`, `int8`, `fp8`, `fp8-block`, `mxfp4` or `nvfp4`.
        layers: the quantized layers.
        tensors: number of tensors in the model; a quantized weight counts as one.
        params: parameters of the model.
        nbytes: of all stored tensors.
        quantized_bytes: of the tensors that store the quantized layers: codes, scales, maps and states.
        skipped: linear layers that stay as they are, and what the output does not contain, and why.
        seconds: wall time.
        correction: the adapter in OUT/correction that repairs the outputs; None if none was asked for.
        held_out: losses on held-out text, in nats per token, of the original, with the nearest codes, as written and
            with the correction: the mean and that on each kind of text; None if they were not measured.
        distilled: how the correction was trained; None if it was not.
        notes: warnings and advice.
    """

    output: Path
    encoding: Encoding
    layers: list[QuantizedLayer]
    tensors: int
    params: int
    nbytes: int
    quantized_bytes: int
    skipped: Sequence[Skipped]
    seconds: float
    correction: AdapterResult | None = None
    held_out: Mapping[str, Mapping[str, float]] | None = None
    distilled: Result | None = None
    notes: tuple[str, ...] = ()

    @property
    def quantized_params(self) -> int:
        """Quantized parameters."""
        return sum(math.prod(layer.shape) for layer in self.layers)

    @property
    def bytes_per_param(self) -> float:
        """Bytes per quantized parameter, with its share of the scales, maps and states."""
        return self.quantized_bytes / self.quantized_params

    @property
    def error(self) -> float:
        """‖W̃ − W‖_F / ‖W‖_F over all layers together."""
        size = math.hypot(*(layer.fro_norm for layer in self.layers))
        return math.hypot(*(layer.error * layer.fro_norm for layer in self.layers)) / size if size else 0.0

    def output_error(self, *, nearest: bool = False) -> float | None:
        """‖(W̃ − W)·C^½‖_F / ‖W·C^½‖_F, mean over the calibrated layers; None without calibration.

        Args:
            nearest: with the nearest codes instead of those written.
        """
        errors = [layer.nearest_output_error if nearest else layer.output_error for layer in self.layers]
        known = [error for error in errors if error is not None]
        return sum(known) / len(known) if known else None

    def rows(self) -> list[dict[str, Any]]:
        """One row per quantized layer."""
        return [
            {"name": layer.name, "shape": list(layer.shape), "error": layer.error, "fro_norm": layer.fro_norm}
            for layer in self.layers
        ]

    def to_json(self) -> dict[str, Any]:
        """The `eckart-quantize/2` object."""
        return {
            "format": "eckart-quantize/2",
            "encoding": self.encoding,
            "tensors": self.tensors,
            "quantized": len(self.layers),
            "params": self.params,
            "quantized_params": self.quantized_params,
            "bytes": self.nbytes,
            "bytes_per_quantized_param": self.bytes_per_param,
            "error": self.error,
            "layers": [_layer_json(layer) for layer in self.layers],
            "skipped": [item.to_json() for item in self.skipped],
            "correction": self.correction.to_json() if self.correction else None,
            "held_out": self.held_out,
            "distill": self.distilled.to_json() if self.distilled else None,
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


def quantize(
    source: Source,
    output: str | Path,
    *,
    to: Encoding = "nf4",
    target: str | Sequence[str] = ALL_LINEAR,
    exclude: str | Sequence[str] = (),
    block_size: int = DEFAULT_BLOCK,
    double: bool = False,
    dtype: DType | torch.dtype | str | None = None,
    moments: Moments | None = None,
    correct: int = 0,
    refine: Callable[[Path, Adapter], Adapter] | None = None,
    execution: Execution = Execution(),
    force: bool = False,
    check: Callable[[Path], None] = lambda folder: None,
) -> QuantizeResult:
    """Write `source` with its linear layers quantized; NF4 bit for bit as bitsandbytes does on the CPU.

    With second moments of the layers' inputs, each layer gets the codes that change its outputs least, if these are
    better than the nearest ones on kinds of text that were left out.

    Output layers (unless targeted), embeddings, norms and stacked experts stay as they are, as in transformers.

    Args:
        source: SOURCE text, or a transformers model.
        output: folder to write; finished tensors are stored next to it until it is complete.
        to: `nf4` for bitsandbytes; `int4` or `int8` in groups, `fp8` with a scale per output, `mxfp4` or `nvfp4` for
            compressed-tensors and vLLM; `fp8-block` with a scale for each 128×128 block, as DeepSeek-V3 has it.
        target: layers to quantize, by PEFT's rules; a string is one pattern.
        exclude: layers to leave alone; takes precedence over `target`.
        block_size: values that share a scale.
        double: quantize the scales too.
        dtype: dtype of all other floating-point tensors, to which weights are rounded before they are quantized, by
            name or as torch dtype; None keeps the source's (float32 for quantized GGUF tensors).
        moments: second moments of the layers' inputs, from `eckart.calibration.collect_moments`.
        correct: rank of a correction to write into the folder `correction` of the output; 0 for none.
        refine: changes the correction before it is written, given the folder of the quantized model, such as
            `eckart.calibration.DistilledCorrection`.
        execution: workers, memory, progress, resume.
        force: replace an existing output.
        check: called with the complete folder before it gets its final name; after an error it does not get it.

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
    if correct and moments is None:
        msg = "a correction needs second moments of the layers' inputs: pass `calibrate`"
        raise OptionError(msg)
    plan = plan_quantize(
        source, to=to, target=target, exclude=exclude, block_size=block_size, double=double, dtype=dtype,
        moments=moments, correct=correct,
    )  # fmt: skip
    plan.check_output(Path(output), force=force)
    from eckart.operations.model_writer.writer import ModelWriter  # here: a refusal needs no torch

    corrections: list[AdapterResult] = []

    def complete(folder: Path) -> None:
        if correct and moments is not None:
            options: dict[str, Any] = {"target": target, "exclude": exclude, "execution": execution, "refine": refine}
            corrections.append(add_correction(folder, source, Path(output), moments=moments, rank=correct, **options))
        check(folder)

    facts = ModelWriter(plan).write(Path(output), execution, force=force, check=complete)
    layers = [_layer(tensor, facts[tensor.name]) for tensor in plan.quantized]
    return QuantizeResult(
        Path(output),
        to,
        layers,
        plan.count,
        sum(math.prod(info.shape) for info in plan.base.tensors.values()),
        plan.nbytes,
        sum(spec.nbytes for tensor in plan.quantized for spec in tensor.specs),
        plan.skipped,
        time.monotonic() - began,
        published(corrections, Path(output)),
    )


def add_correction(
    folder: Path,
    source: Source,
    output: Path,
    *,
    refine: Callable[[Path, Adapter], Adapter] | None = None,
    **options: Any,
) -> AdapterResult:
    """Write the correction of a quantized model into its folder, before that gets its final name.

    Args:
        folder: the quantized model.
        source: the model that it was made from.
        output: its final name, which the correction's config gives as its base; the correction is next to it until it
            is complete.
        refine: see `quantize`.
        options: further arguments of `correct`.
    """
    options["refine"] = partial(refine, folder) if refine else None
    beside, place = output.with_name(f"{output.name}.{CORRECTION}"), folder / CORRECTION
    result = correct_model(folder, source, output=beside, force=True, base_model=str(output), **options)
    names = (path.relative_to(beside).as_posix() for path in beside.rglob("*") if path.is_file())
    write_manifest(folder, [*listed_files(folder), *(f"{CORRECTION}/{name}" for name in names)])
    remove(place)  # of an interrupted run
    beside.rename(place)
    return result


def published(corrections: Sequence[AdapterResult], output: Path) -> AdapterResult | None:
    """The last correction that was added, by the name that its folder has now; None without one."""
    place = output / CORRECTION
    return replace(corrections[-1], output=place, adapter=load_adapter(place)) if corrections else None


def _layer(tensor: OutputTensor, facts: Mapping[str, float]) -> QuantizedLayer:
    view, size = tensor.views[0], facts["merged"]
    error, outputs = facts["error"] / size if size else 0.0, facts.get("outputs")
    if not outputs:
        return QuantizedLayer(view.name, view.shape, error, size)
    errors = (facts["output"] / outputs, facts["nearest_output"] / outputs)
    return QuantizedLayer(view.name, view.shape, error, size, *errors, facts["damping"])


def _layer_json(layer: QuantizedLayer) -> dict[str, Any]:
    entry = {"name": layer.name, "shape": list(layer.shape), "error": layer.error}
    if layer.output_error is None:
        return entry
    outputs = {"output_error": layer.output_error, "nearest_output_error": layer.nearest_output_error}
    return entry | outputs | {"damping": layer.damping}
