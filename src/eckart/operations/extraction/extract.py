"""A fine-tune as an adapter: the best low-rank factors of tuned − base, matrix by matrix, with measured errors."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from eckart.adapter.outline import AdapterFormat
from eckart.checkpoint.open import ModelSource
from eckart.operations.adapter_writer import AdapterWriter
from eckart.operations.extraction.plan import plan_extract
from eckart.operations.rank_choice import Budget, RankChoice

if TYPE_CHECKING:
    import torch

    from eckart.engine import Execution
    from eckart.operations.adapter_result import AdapterResult, Refine
    from eckart.result import Finish


def extract(
    base: ModelSource,
    tuned: ModelSource,
    *,
    rank: "int | Literal['noise'] | RankChoice | None" = None,
    energy: float | None = None,
    error: float | None = None,
    budget: str | int | Budget | None = None,
    target: str | Sequence[str] = "all-linear",
    exclude: str | Sequence[str] = (),
    modules_to_save: str | Sequence[str] = (),
    output: str | Path | None = None,
    dtype: "str | torch.dtype" = "float32",
    balanced: bool = True,
    to: AdapterFormat | None = None,
    family: str | None = None,
    execution: "Execution | None" = None,
    force: bool = False,
    refine: "Refine | None" = None,
    finish: "Finish[AdapterResult] | None" = None,
) -> "AdapterResult":
    """The adapter that turns `base` into the best low-rank approximation of `tuned`.

    Ranks are chosen by at most one of `rank`, `energy`, `error` and `budget`; without any, every rank is 16.

    Args:
        base: the model that was fine-tuned: SOURCE text, state dict or module.
        tuned: the fine-tuned model, with the same tensors.
        rank: the rank of every matrix, at most its shorter side; or `noise`, for the directions of each that stand
            above the rounding of the fine-tune's stored data type.
        energy: the smallest rank of each matrix that preserves this share of ‖ΔW‖_F².
        error: the smallest rank of each matrix whose relative Frobenius error is below this.
        budget: size of the adapter, as bytes (`"20MB"`) or parameters (`"5M"`, or an int), shared so that the most
            energy is preserved. Biases and tensors saved in full count.
        target: patterns of the matrices to factor, by PEFT's rules, or presets; a string is one pattern.
        exclude: patterns of matrices to skip; takes precedence over `target`.
        modules_to_save: patterns of modules whose changed tensors are saved in full; `norm` is every normalization
            layer, and `bias` saves the changed biases of factored modules.
        output: folder to write, or the file of another format; finished matrices are stored next to it until then.
        dtype: of the factors: float32, bfloat16, float16 or float64, as a name or a torch dtype.
        balanced: split √S to both factors; otherwise lora_B carries S and lora_A has orthonormal rows.
        to: format of the result: "peft" (the default), or of image and video models "kohya", "comfyui" or "diffusers"
            (the default for a pipeline); `output` is then as of `convert`. What its files cannot name is skipped.
        family: with `to`, the family of the model, such as flux1, where several fit.
        execution: device, workers, memory, progress, resume, seed.
        force: replace an existing output.
        refine: changes the adapter before it is written, such as `eckart.training.Distillation`; errors are then
            measured again.
        finish: called with the folder before it gets its final name and the result, to add files.

    Returns:
        `AdapterResult`: the adapter, each layer's measured error and the least error possible, and what was skipped.

    Raises:
        MismatchError: the checkpoints do not belong together or do not differ, or a pattern matches nothing.
        OptionError: an argument is invalid, or the budget is too small.
        OutputError: the output exists or cannot be written.
        SourceError: an input changed during the run.
        NotFiniteError: a tensor contains NaN or Inf.
    """
    plan = plan_extract(
        base, tuned, rank=rank, energy=energy, error=error, budget=budget, target=target, exclude=exclude,
        modules_to_save=modules_to_save, dtype=dtype, balanced=balanced, to=to, family=family,
    )  # fmt: skip
    writer = AdapterWriter.checked(plan, output, execution, force=force, refine=refine, finish=finish)
    from eckart.operations.extraction.work import extraction_work  # imports torch

    return writer.write(extraction_work(plan, writer.execution))
