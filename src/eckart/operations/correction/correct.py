"""The adapter that brings a quantized model's predictions back to those of its original, as near as its size allows."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.formats.sources import Source
from eckart.operations.adapter_writer import AdapterWriter
from eckart.operations.correction.plan import plan_correct
from eckart.operations.merging.plan import Adapters

if TYPE_CHECKING:
    import torch

    from eckart.engine import Execution
    from eckart.operations.adapter_result import AdapterResult, Refine
    from eckart.operations.moments import Moments
    from eckart.result import Finish


def correct(
    quantized: Source,
    original: Source,
    *,
    moments: "Moments",
    rank: int,
    adapters: Adapters = (),
    target: str | Sequence[str] = "all-linear",
    exclude: str | Sequence[str] = (),
    output: str | Path | None = None,
    dtype: "str | torch.dtype" = "float32",
    base_model: str | None = None,
    execution: "Execution | None" = None,
    force: bool = False,
    refine: "Refine | None" = None,
    finish: "Finish[AdapterResult] | None" = None,
) -> "AdapterResult":
    """The best adapter of a given size for what the errors of a quantized model's layers do to its predictions.

    Args:
        quantized: the model to correct, in any encoding that eckart reads.
        original: the model that it was quantized from.
        moments: second moments of the layers, from `eckart.calibration.collect_moments`.
        rank: size of the adapter: that of one with this rank for every layer. The layers share it by their errors.
        adapters: adapters of the original that the correction carries too.
        target: patterns of the layers to correct, by PEFT's rules, or presets.
        exclude: patterns of layers to skip; takes precedence over `target`.
        output: folder to write, in PEFT's format; finished layers are stored next to it until it is complete.
        dtype: of the factors, by name or as torch dtype.
        base_model: the adapter's base, as its config names it; by default `quantized`.
        execution: device, workers, memory, progress, resume, seed.
        force: replace an existing output.
        refine: changes the adapter before it is written, such as `eckart.calibration.DistilledCorrection`.
        finish: called with the folder before it gets its final name and the result, to add files.

    Returns:
        `AdapterResult`. All errors are those of the predictions on the calibration text, to second order, relative to
        what quantization cost: ‖G^½(W − W̃ − BA)·C^½‖_F / ‖G^½(W − W̃)·C^½‖_F, with the second moments C of the inputs
        and G of the gradients at the outputs, next to the least that any adapter of these ranks could leave
        (Eckart–Young).

    Raises:
        MismatchError: the models do not belong together, or no targeted layer has second moments.
        OptionError: an argument is invalid.
        OutputError: the output exists or cannot be written.
        SourceError: an input changed during the run.
        NotFiniteError: a tensor contains NaN or Inf.
    """
    plan = plan_correct(
        quantized, original, moments=moments, rank=rank, adapters=adapters, target=target, exclude=exclude, dtype=dtype,
        base_model=base_model,
    )  # fmt: skip
    writer = AdapterWriter.checked(plan, output, execution, force=force, refine=refine, finish=finish)
    from eckart.operations.correction.work import correction_work  # imports torch

    return writer.write(correction_work(plan, writer.execution))
