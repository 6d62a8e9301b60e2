"""Adapters removed from a model that they were merged into, and how exactly that restores the base."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.adapter.adapter import Adapter
from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import TensorOutline
from eckart.engine import Execution
from eckart.errors import MismatchError, OptionError
from eckart.formats.sources import Source, open_model
from eckart.operations.merging.plan import Adapters, plan_merge, written_to
from eckart.operations.placement import Term
from eckart.result import Result, Skipped

if TYPE_CHECKING:
    import torch

    from eckart.checkpoint import Checkpoint, DType
    from eckart.operations.model_writer.plan import ModelPlan, OutputTensor


@dataclass(frozen=True, repr=False)
class UnmergeResult(Result):
    """A model with adapters removed.

    Attributes:
        output: the folder.
        tensors: number of tensors in it.
        changed: number of tensors that an adapter had changed.
        nbytes: bytes of all tensors.
        bit_equal: share of the changed tensors' entries that merging again turns back into the merged entry.
        base_equal: share that equals the base bit for bit; None without a base.
        max_ulps: largest distance from the base, in units in the last place of the larger of the merged and the
            base's entry; None without a base.
        skipped: what the output does not contain, and why.
        seconds: wall time.
    """

    output: Path
    tensors: int
    changed: int
    nbytes: int
    bit_equal: float
    base_equal: float | None
    max_ulps: float | None
    skipped: Sequence[Skipped]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The `eckart-unmerge/2` object."""
        return {
            "format": "eckart-unmerge/2",
            "tensors": self.tensors,
            "changed": self.changed,
            "bytes": self.nbytes,
            "bit_equal": self.bit_equal,
            "base_equal": self.base_equal,
            "max_ulps": self.max_ulps,
            "skipped": [item.to_json() for item in self.skipped],
            "seconds": self.seconds,
        }


def plan_unmerge(
    merged: Source,
    adapters: Adapters,
    *,
    base: Source | None = None,
    weights: Sequence[float] | None = None,
    dtype: DType | torch.dtype | str | None = None,
) -> ModelPlan:
    """What `unmerge` will write, from headers alone (arguments and errors as there)."""
    plan = plan_merge(merged, adapters, weights=weights, dtype=dtype)
    if plan.quantized:
        msg = (
            f"{plan.base.source}: the values before rounding to {plan.encoding} are lost; `dtype=bfloat16` writes "
            "dense weights without the adapters"
        )
        raise OptionError(msg)
    if any(adapter.config.get("layer_replication") for adapter in plan.adapters):
        msg = "an adapter that repeats layers (layer_replication) cannot be unmerged; use its base instead"
        raise MismatchError(msg)
    lost = _lost(plan)
    if lost and base is None:
        msg = "only the base restores what DoRA renormalized or the adapter replaced: give it as `base`"
        raise MismatchError.listing(msg, [tensor.name for tensor in lost])
    plan = replace(plan, weights=tuple(-weight for weight in plan.weights), command="unmerge")
    if base is None:
        return plan
    original = open_model(base)
    return replace(_from_base(plan, lost, original), compared=original.files)


def unmerge(
    merged: Source,
    adapters: Adapters,
    output: str | Path,
    *,
    base: Source | None = None,
    weights: Sequence[float] | None = None,
    dtype: DType | torch.dtype | str | None = None,
    execution: Execution = Execution(),
    force: bool = False,
) -> UnmergeResult:
    """Write `merged` with adapters removed: equal to the base up to one rounding.

    With a base, the model is first checked to contain the adapters, as `check_merge` does. Without one, only a model
    that equals the base named by an adapter is recognized as never merged.

    Args:
        merged: SOURCE text, state dict or module that the adapters were merged into.
        adapters: one or several, in memory or their SOURCEs.
        output: folder to write, or a .safetensors file if `merged` is one file; finished tensors are stored next to it
            until it is complete.
        base: the model that they were merged into, if available; used to check `merged`, to measure the result, and
            to restore tensors that DoRA renormalized or an adapter replaced.
        weights: factor that each adapter was merged with; default 1.
        dtype: dtype of all floating-point tensors, by name or as torch dtype; None keeps that of `merged`.
        execution: workers, memory, progress, resume.
        force: replace an existing output.

    Returns:
        `UnmergeResult`: where it is, and how much of it is restored exactly.

    Raises:
        MismatchError: `merged` does not contain the adapters, keys that it lacks, or tensors that only a base could
            restore; all at once.
        OptionError: invalid weights, 4-bit weights without a `dtype`, or a source of the wrong kind.
        OutputError: the output exists or cannot be written.
        NotFiniteError: a changed tensor or an adapter contains NaN or Inf, or the result is outside its dtype's range.
    """
    began = time.monotonic()
    execution.check()
    plan = plan_unmerge(merged, adapters, base=base, weights=weights, dtype=dtype)
    plan = written_to(plan, Path(output))
    original = None if base is None else open_model(base)
    plan.check_output(Path(output), force=force)
    # Imported here: a refusal from headers needs no torch.
    from eckart.operations.merging.restored import compare_restored, require_merged
    from eckart.operations.model_writer.writer import ModelWriter

    require_merged(plan, original, adapters, weights, execution)
    measured: list[tuple[float, float | None, float | None]] = []

    def measure(folder: Path) -> None:
        again = plan_merge(folder, adapters, weights=weights)
        measured.append(compare_restored(again, plan.base, original, execution))

    ModelWriter(plan).write(Path(output), execution, force=force, check=measure)
    return UnmergeResult(
        Path(output),
        plan.count,
        len(plan.changed),
        plan.nbytes,
        *measured[0],
        plan.skipped,
        time.monotonic() - began,
    )


def _lost(plan: ModelPlan) -> list[OutputTensor]:
    """Tensors whose change cannot be subtracted."""
    outlines = [adapter.outline() for adapter in plan.adapters]

    def is_lost(term: Term) -> bool:
        if term.part == "update":
            return outlines[term.adapter][term.key].magnitude is not None
        return term.part in ("whole", "rows")

    return [it for it in plan.changed if any(is_lost(term) for terms in it.terms.values() for term in terms)]


def _from_base(plan: ModelPlan, lost: Sequence[OutputTensor], base: Checkpoint) -> ModelPlan:
    """The plan with lost tensors taken from the base, as if an adapter had saved them."""
    sources = {tensor.name: base.tied.get(tensor.name, tensor.name) for tensor in plan.changed}
    shapes = {name: base.tensors[source].shape for name, source in sources.items() if source in base.tensors}
    faults = [
        f"{tensor.name}: {shapes.get(tensor.name, 'missing')} in the base, expected {tensor.info.shape}"
        for tensor in plan.changed
        if shapes.get(tensor.name) != tensor.info.shape
    ]
    if faults:
        msg = f"{plan.base.source} was not merged from {base.source}"
        raise MismatchError.listing(msg, faults)
    if not lost:
        return plan
    outlines = {tensor.name: TensorOutline(tensor.info.shape, tensor.info.dtype) for tensor in lost}
    saved = Adapter({}, Deferred(outlines, lambda name: base.read(sources[name])), files=())
    tensors = [
        replace(it, terms={view.name: [Term(len(plan.adapters), it.name, "whole")] for view in it.views})
        if it.name in outlines
        else it
        for it in plan.tensors
    ]
    return replace(plan, adapters=(*plan.adapters, saved), weights=(*plan.weights, 1.0), tensors=tensors)
