"""Adapters baked into a base: base + Σ wᵢ·Δᵢ, streamed tensor by tensor, rounded once to the base's dtype."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eckart.engine import Execution
from eckart.operations.merging.plan import Adapters, Source, plan_merge
from eckart.operations.model_writer.rounding_cost import errors_of
from eckart.result import Skipped

DEFAULT_EXECUTION = Execution()


@dataclass(frozen=True)
class MergeResult:
    """A checkpoint with adapters baked in.

    Attributes:
        output: the folder.
        tensors: in it.
        changed: of these, by an adapter.
        nbytes: of all tensors.
        untied: whether an output layer that shared the embedding's weight now has its own.
        skipped: what is not in the output, and why.
        seconds: wall time.
        requantization_error: ‖requantized − merged‖_F / ‖merged‖_F of a quantized base; None of any other.
        update_error: what rounding or quantizing the changed weights cost, as a share of ‖merged − base‖_F; of rounded
            ones seen on an eighth of their rows; None where nothing was rounded.
    """

    output: Path
    tensors: int
    changed: int
    nbytes: int
    untied: bool
    skipped: list[Skipped]
    seconds: float
    requantization_error: float | None = None
    update_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The `eckart-merge/2` object."""
        return {
            "format": "eckart-merge/2",
            "tensors": self.tensors,
            "changed": self.changed,
            "bytes": self.nbytes,
            "untied": self.untied,
            "requantization_error": self.requantization_error,
            "update_error": self.update_error,
            "skipped": [item.to_json() for item in self.skipped],
            "seconds": self.seconds,
        }


def merge(
    base: Source,
    adapters: Adapters,
    output: str | Path,
    *,
    weights: Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    execution: Execution = DEFAULT_EXECUTION,
    force: bool = False,
) -> MergeResult:
    """Write `base` with adapters baked in: a model folder in Hugging Face layout.

    Rows are upcast to float32 (float64 where stored so), changed by the product of the factors, and rounded once.
    A DoRA layer is renormalised for each output; a tensor that an adapter saves whole replaces the base's, or is mixed
    with it by its weight. An adapter on only one of a tied embedding and output layer gives each its own weight.
    Tensors that no adapter changes are copied as they are, whatever they hold.

    Args:
        base: SOURCE text, state dict or module.
        adapters: one or several, in memory or their SOURCEs.
        output: folder to write; what is finished is kept beside it until it is whole.
        weights: factor of each adapter, signed; all 1 by default, and an adapter of weight 0 changes nothing.
        dtype: of all floating tensors; None keeps the base's (float32 of quantized GGUF tensors).
        execution: workers, memory, progress, resume.
        force: replace an existing output.

    Returns:
        `MergeResult`: where it is, how many tensors changed, and what is not in it.

    Raises:
        MismatchError: keys of the adapters without a place in the base, or of other shapes; all at once.
        OptionError: weights that are not one finite number for each adapter.
        OutputError: the output exists or cannot be written.
        NotFiniteError: a tensor that is changed, or an adapter, holds NaN or Inf, or the result overflows its dtype.
    """
    began = time.monotonic()
    execution.check()
    plan = plan_merge(base, adapters, weights=weights, dtype=dtype)
    facts = plan.write(Path(output), execution, force=force)
    return MergeResult(
        Path(output),
        plan.count,
        len(plan.changed),
        plan.nbytes,
        bool(plan.untied),
        plan.skipped,
        time.monotonic() - began,
        *errors_of(list(facts.values())),
    )
