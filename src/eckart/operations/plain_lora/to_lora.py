"""An adapter as plain LoRA: what DoRA, saved matrices and token rows add to the base, as factors of certified rank."""

from pathlib import Path
from typing import TYPE_CHECKING

from eckart.adapter.adapter import Adapter
from eckart.formats.sources import Source, open_adapter
from eckart.operations.adapter_writer import AdapterWriter
from eckart.operations.plain_lora.plan import plan_products, plan_to_lora

if TYPE_CHECKING:
    import torch

    from eckart.engine import Execution
    from eckart.operations.adapter_result import AdapterResult


def to_lora(
    adapter: Adapter | str | Path,
    base: Source | None = None,
    *,
    rank: int | None = None,
    error: float | None = None,
    output: str | Path | None = None,
    dtype: "str | torch.dtype" = "float32",
    execution: "Execution | None" = None,
    force: bool = False,
) -> "AdapterResult":
    """The adapter with every layer as a plain low-rank update of `base`, in PEFT's format.

    Without `base`, LoHa, LoKr and full differences of a LoRA file become plain LoRA in the format of the file.

    What a DoRA layer, a completely saved matrix or new rows of an embedding add to the base is computed in float64 and
    factored as an extraction factors a difference. Layers that are plain already are unchanged. Vectors (norms,
    biases), heads that the base lacks and tensors of another vocabulary stay saved, and are reported.

    Args:
        adapter: the adapter, or its SOURCE.
        base: the model that it was made for; None for a file whose updates are products of its own tensors.
        rank: of each layer that is computed, 16 by default, at most the number of new rows.
        error: instead, the smallest rank of each of them whose relative Frobenius error is below this.
        output: folder to write; finished layers are stored next to it until it is complete.
        dtype: of the factors that are computed.
        execution: workers, memory, progress, resume, seed.
        force: replace an existing output.

    Returns:
        `AdapterResult`: each layer's measured error and the least error possible, 0 for those that are unchanged.

    Raises:
        MismatchError: the adapter does not fit the base.
        OptionError: an argument is invalid, or the updates are of the model, and `base` is not given.
        OutputError: the output exists or cannot be written.
        SourceError: an input changed during the run.
        NotFiniteError: a tensor contains NaN or Inf.
    """
    if base is None:
        from eckart.operations.resizing.resize import resize

        opened = open_adapter(adapter)
        plan = plan_products(opened, rank=rank, error=error, dtype=dtype)
        return resize(
            opened,
            rank=plan.choice,
            target=plan.names,
            output=output,
            dtype=dtype,
            execution=execution,
            force=force,
        )
    plan = plan_to_lora(adapter, base, rank=rank, error=error, dtype=dtype)
    writer = AdapterWriter.checked(plan, output, execution, force=force)
    from eckart.operations.plain_lora.work import lora_work  # imports torch

    return writer.write(lora_work(plan, writer.execution))
