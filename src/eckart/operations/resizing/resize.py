"""An adapter at another rank: the best one of that rank, energy, error or budget, exactly, from its factors alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from eckart.adapter.adapter import Adapter
from eckart.operations.adapter_writer import AdapterWriter
from eckart.operations.rank_choice import Budget, RankChoice
from eckart.operations.resizing.plan import plan_resize

if TYPE_CHECKING:
    import torch

    from eckart.engine import Execution
    from eckart.operations.adapter_result import AdapterResult, Refine
    from eckart.result import Finish


def resize(
    adapter: Adapter | str | Path,
    *,
    rank: "int | Literal['noise'] | RankChoice | None" = None,
    energy: float | None = None,
    error: float | None = None,
    budget: str | int | Budget | None = None,
    target: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    scale: Mapping[str, float] | None = None,
    output: str | Path | None = None,
    dtype: "str | torch.dtype | None" = None,
    execution: "Execution | None" = None,
    force: bool = False,
    refine: "Refine | None" = None,
    finish: "Finish[AdapterResult] | None" = None,
) -> "AdapterResult":
    """The best adapter of another rank, layer by layer: QR of the factors and an r×r SVD in float64, never the product.

    Exactly one of `rank`, `energy`, `error` and `budget` chooses the ranks. A higher rank leaves the update unchanged:
    lora_B gets columns of zeros and lora_A random rows as PEFT initializes them, so that training can continue. A layer
    that has the requested rank keeps its factors bit for bit. Scaling, biases, DoRA's magnitudes and tensors saved in
    full are unchanged; for DoRA the error is that of the direction's update. A PEFT file states one alpha for all
    layers, and has the rest of each scale in lora_B, unless the adapter says `keep_scales`.

    By energy, error or budget, a layer whose update is zero or earns no rank is skipped and named, unless it has a bias
    or magnitude: then it gets rank 1.

    Args:
        adapter: an `Adapter`, or the path or hub name of one.
        rank: exactly this rank for every layer (above a matrix's shorter side too, as PEFT allows); or `noise`, for the
            directions of each that stand above the rounding of its stored factors.
        energy: the smallest rank of each layer that preserves this share of ‖Δ‖_F².
        error: the smallest rank of each layer whose relative Frobenius error is below this.
        budget: size of the adapter, as bytes (`"20MB"`) or parameters (`"5M"`, or an int), shared so that the most
            energy is preserved. Everything that is written counts.
        target: patterns of the layers to resize, by PEFT's rules, or presets; a string is one pattern. All layers by
            default. The others are unchanged.
        exclude: patterns of layers to leave unchanged; takes precedence over `target`. One that contains NaN or Inf is
            left out of the result, and named.
        scale: factors of layers by pattern, before they are resized; 0 removes them. See `with_scales`.
        output: where to write it, in the format of the input; finished layers are stored next to it until it is
            complete.
        dtype: of the resized factors, as a name or a torch dtype; None keeps that of each layer.
        execution: workers, memory, progress, resume, seed.
        force: replace an existing output.
        refine: changes the adapter before it is written, such as `eckart.training.Distillation`; errors are then
            measured again.
        finish: called with the folder or file before it gets its final name and the result, to add files to a folder.

    Returns:
        `AdapterResult`: each layer's rank, the error measured on the factors as written, and the least possible.

    Raises:
        MismatchError: a pattern matches nothing, or no layer is left.
        OptionError: an argument is invalid, the budget is too small, or factors are too large for the dtype.
        OutputError: the output exists or cannot be written.
        SourceError: an input changed during the run.
        NotFiniteError: a tensor contains NaN or Inf.
    """
    plan = plan_resize(
        adapter,
        rank=rank,
        energy=energy,
        error=error,
        budget=budget,
        target=target,
        exclude=exclude,
        scale=scale,
        dtype=dtype,
    )
    writer = AdapterWriter.checked(plan, output, execution, force=force, refine=refine, finish=finish)
    from eckart.operations.resizing.work import resize_work  # imports torch

    return writer.write(resize_work(plan, writer.execution))
