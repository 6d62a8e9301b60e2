"""Adapters taken out of a checkpoint that they were merged into, and how exactly that restores it."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eckart.adapter.adapter import Adapter
from eckart.adapter.deferred import Deferred
from eckart.checkpoint import Checkpoint, MatrixView, open_checkpoint
from eckart.checkpoint.matrices import rows_of
from eckart.checkpoint.nf4 import Nf4Checkpoint
from eckart.engine import Execution, Task, run_tasks
from eckart.errors import MismatchError, OptionError
from eckart.linalg.slabs import SLAB_BYTES
from eckart.operations.merging.plan import Adapters, MergePlan, Source, plan_merge
from eckart.operations.model_writer.rewrite import Rewritten, in_cache
from eckart.operations.placement import Term
from eckart.result import Skipped

DEFAULT_EXECUTION = Execution()


@dataclass(frozen=True)
class UnmergeResult:
    """A checkpoint with adapters taken out.

    Attributes:
        output: the folder.
        tensors: in it.
        changed: of these, by an adapter.
        nbytes: of all tensors.
        bit_equal: share of the changed tensors' entries for which merging again gives the merged entry back.
        base_equal: share that equals the base bit for bit; None without a base.
        max_ulps: largest distance from the base, in units in the last place of the larger of the merged and the
            base's entry; None without a base.
        skipped: what is not in the output, and why.
        seconds: wall time.
    """

    output: Path
    tensors: int
    changed: int
    nbytes: int
    bit_equal: float
    base_equal: float | None
    max_ulps: float | None
    skipped: list[Skipped]
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
    dtype: torch.dtype | None = None,
) -> MergePlan:
    """What `unmerge` will write, from headers alone (arguments and errors as there)."""
    plan = plan_merge(merged, adapters, weights=weights, dtype=dtype)
    if dtype is None and isinstance(plan.base, Nf4Checkpoint):
        msg = f"{plan.base.source}: 4-bit weights have lost what they were; restore plain ones with --dtype bfloat16"
        raise OptionError(msg)
    lost = _lost(plan)
    if lost and base is None:
        msg = "renormalised (DoRA) or replaced by the adapter, which only the base undoes: give it with --base"
        raise MismatchError.listing(msg, [tensor.name for tensor in lost])
    negative = tuple(-weight for weight in plan.weights)
    plan = replace(plan, weights=negative, made_by="unmerge")
    return plan if base is None else _from_base(plan, lost, open_checkpoint(base))


def unmerge(
    merged: Source,
    adapters: Adapters,
    output: str | Path,
    *,
    base: Source | None = None,
    weights: Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    execution: Execution = DEFAULT_EXECUTION,
    force: bool = False,
) -> UnmergeResult:
    """Write `merged` with adapters taken out: within one rounding of what they were merged into.

    Args:
        merged: SOURCE text, state dict or module that the adapters were merged into.
        adapters: one or several, in memory or their SOURCEs.
        output: folder to write; what is finished is kept beside it until it is whole.
        base: what they were merged into, if it is there: to compare with, and for tensors that DoRA renormalised or
            an adapter replaced, which come from it.
        weights: factor that each adapter was merged with; all 1 by default.
        dtype: of all floating tensors; None keeps that of `merged`.
        execution: workers, memory, progress, resume.
        force: replace an existing output.

    Returns:
        `UnmergeResult`: where it is, and how much of it is restored exactly.

    Raises:
        MismatchError: keys of the adapters without a place, or tensors that only a base could restore; all at once.
        OptionError: bad weights, or 4-bit weights without a `dtype`.
        OutputError: the output exists or cannot be written.
        NotFiniteError: a tensor that is changed, or an adapter, holds NaN or Inf, or the result overflows its dtype.
    """
    began = time.monotonic()
    execution.check()
    plan = plan_unmerge(merged, adapters, base=base, weights=weights, dtype=dtype)
    plan.write(Path(output), execution, force=force)
    original = None if base is None else open_checkpoint(base)
    again = plan_merge(output, adapters, weights=weights)
    # Reading again what was written checks the files themselves.
    tasks = [
        Task(tensor.name, tensor.info.nbytes, 8 * SLAB_BYTES, partial(_compare, again, tensor, plan.base, original))
        for tensor in again.changed
    ]
    found = [counts for _, counts in run_tasks(tasks, stage="Comparing", execution=execution)]
    entries = sum(counts.entries for counts in found) or 1
    return UnmergeResult(
        Path(output),
        plan.count,
        len(plan.changed),
        plan.nbytes,
        sum(counts.again for counts in found) / entries,
        None if original is None else sum(counts.equal for counts in found) / entries,
        None if original is None else max((counts.ulps for counts in found), default=0.0),
        plan.skipped,
        time.monotonic() - began,
    )


@dataclass
class _Counts:
    """Of one tensor: entries, those that merge back, those that equal the base, and the largest distance from it."""

    entries: int = 0
    again: int = 0
    equal: int = 0
    ulps: float = 0.0


def _lost(plan: MergePlan) -> list[Rewritten]:
    """Tensors whose change cannot be subtracted."""
    outlines = [adapter.outline() for adapter in plan.adapters]

    def is_lost(term: Term) -> bool:
        if term.part == "update":
            return outlines[term.adapter][term.key].magnitude is not None
        return term.part == "whole"

    return [
        tensor for tensor in plan.changed if any(is_lost(term) for terms in tensor.terms.values() for term in terms)
    ]


def _from_base(plan: MergePlan, lost: Sequence[Rewritten], base: Checkpoint) -> MergePlan:
    """The plan with lost tensors taken from the base: as if an adapter had saved them whole."""
    held = {tensor.name: base.tied.get(tensor.name, tensor.name) for tensor in plan.changed}
    shapes = {name: base.tensors[own].shape for name, own in held.items() if own in base.tensors}
    faults = [
        f"{tensor.name}: {shapes.get(tensor.name, 'missing')} in the base, expected {tensor.info.shape}"
        for tensor in plan.changed
        if shapes.get(tensor.name) != tensor.info.shape
    ]
    if faults:
        msg = f"{base.source} is not what {plan.base.source} was merged from"
        raise MismatchError.listing(msg, faults)
    outlines = {tensor.name: torch.empty(tensor.info.shape, device="meta") for tensor in lost}
    saved = Adapter({}, Deferred(outlines, lambda name: base.read(held[name])), files=())
    names = {tensor.name for tensor in lost}
    tensors = [
        replace(tensor, terms={view.name: [Term(len(plan.adapters), tensor.name, "whole")] for view in tensor.views})
        if tensor.name in names
        else tensor
        for tensor in plan.tensors
    ]
    return replace(plan, adapters=(*plan.adapters, saved), weights=(*plan.weights, 1.0), tensors=tensors)


def _compare(again: MergePlan, tensor: Rewritten, merged: Checkpoint, base: Checkpoint | None) -> _Counts:
    """Merge restored rows again, and hold them to the merged ones; hold them to the base if it is there."""
    counts = _Counts()
    for view in tensor.views:
        if view.name not in tensor.terms:
            continue
        update, row = again.update(tensor, view, partial(tensor.stored, view)), 0
        others = [_rows_in(other, tensor, view) for other in (merged, base or merged)]
        slabs = zip(tensor.stored(view), *others, strict=True)
        for restored, was, original in (parts for slab in slabs for parts in zip(*map(in_cache, slab), strict=True)):
            remade = update.apply(restored.to(update.dtype), row)
            counts.entries += restored.numel()
            counts.again += int((remade.to(was.dtype) == was).sum())
            if base is not None:
                differ = restored != original
                counts.equal += restored.numel() - int(differ.sum())
                counts.ulps = max(counts.ulps, _ulps(restored[differ], original[differ], was[differ]))
            row += len(restored)
    return counts


def _rows_in(checkpoint: Checkpoint, tensor: Rewritten, view: MatrixView) -> Iterator[Tensor]:
    """Rows of the same matrix elsewhere, through its ties."""
    return rows_of(checkpoint, replace(view, tensor=checkpoint.tied.get(tensor.name, tensor.name)))


def _ulps(restored: Tensor, base: Tensor, merged: Tensor) -> float:
    """The largest distance in units in the last place of the larger of the merged and the base's entry."""
    restored, base, size = (tensor.to(torch.float64) for tensor in (restored, base, merged))
    info = torch.finfo(merged.dtype)
    exponent = torch.frexp(torch.maximum(size.abs(), base.abs()).clamp(min=info.smallest_normal)).exponent
    ulp = info.eps * torch.exp2((exponent - 1).to(torch.float64))
    return float(((restored - base).abs() / ulp).max()) if restored.numel() else 0.0
