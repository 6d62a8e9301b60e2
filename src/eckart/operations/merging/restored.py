"""Whether a model contains the adapters to be removed, and how much of the base is restored exactly."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from eckart.checkpoint import Checkpoint, MatrixView
from eckart.checkpoint.compare import changed
from eckart.checkpoint.matrices import rows_of
from eckart.engine import Execution, Task, run_tasks
from eckart.errors import EckartError, MismatchError
from eckart.formats.sources import open_model
from eckart.linalg.block_sizes import SLAB_BYTES
from eckart.operations.comparison.claimed_merge import plan_merge_check
from eckart.operations.merging.plan import Adapters
from eckart.operations.model_writer.plan import ModelPlan, OutputTensor
from eckart.operations.model_writer.writer import in_cache, stored_rows_of, update_for


def require_merged(
    plan: ModelPlan,
    base: Checkpoint | None,
    adapters: Adapters,
    weights: Sequence[float] | None,
    execution: Execution,
) -> None:
    """Refuse to remove adapters from a model that does not contain them.

    Args:
        plan: of the unmerge.
        base: the model that they were merged into. Without it, the base that an adapter names is used if it is
            available locally, but only to detect that nothing was merged.
        adapters: the adapters to remove.
        weights: the weights that they were merged with.
        execution: workers, memory and progress.

    Raises:
        MismatchError: the model is the base, contains another multiple of the update, or something else.
    """
    if not plan.changed:
        return
    original = base or _equal_base(plan)
    if original is None:
        return
    claim = plan_merge_check(original, adapters, plan.base, weights=weights, execution=execution)
    found = replace(claim, parts=[part for part in claim.parts if part.terms], faults=[]).compare()
    merged, claimed = plan.base.source, " + ".join([original.source, *found.adapters])
    if found.verdict == "not merged":
        msg = f"{merged} does not contain this update, so it cannot be removed: its changed tensors equal the base's"
    elif found.verdict == "other weight" and found.weight:
        low, high = found.weight.lower, found.weight.upper
        msg = f"{merged} contains {(low + high) / 2:.4g} times the update; give the weights that it was merged with"
    elif found.verdict == "differs":
        wrong = [matrix.name for matrix in found.matrices if matrix.verdict == "differs"]
        msg = (
            f"{merged} is not {claimed}: {len(wrong)} of {len(found.matrices)} changed matrices differ from it"
            f"{f', such as {wrong[0]}' if wrong else ''}; eckart compare shows them all"
        )
    else:
        return
    raise MismatchError(msg)


def _equal_base(plan: ModelPlan) -> Checkpoint | None:
    """The base that an adapter names, if the model equals it in every tensor that would change."""
    for name in dict.fromkeys(adapter.base_model for adapter in plan.adapters):
        if not name:
            continue
        if name == plan.base.source:
            return plan.base
        if not Path(name).expanduser().exists():
            continue
        try:
            base = open_model(name)
        except EckartError:
            continue
        if all(_is_equal(base, tensor) for tensor in plan.changed):
            return base
    return None


def _is_equal(base: Checkpoint, tensor: OutputTensor) -> bool:
    info = base.tensors.get(base.tied.get(tensor.source, tensor.source))
    return info is not None and info.shape == tensor.info.shape and not changed(base, tensor.base, tensor.source)


def compare_restored(
    again: ModelPlan, merged: Checkpoint, base: Checkpoint | None, execution: Execution
) -> tuple[float, float | None, float | None]:
    """Read the restored model back and compare it, merged again, with the merged one, and with the base if given.

    Returns:
        `bit_equal`, `base_equal` and `max_ulps` of `UnmergeResult`.
    """
    tasks = [
        Task(tensor.name, tensor.info.nbytes, 8 * SLAB_BYTES, partial(_compare, again, tensor, merged, base))
        for tensor in again.changed
    ]
    total, again_equal, base_equal, most_ulps = 0, 0, 0, 0.0
    for _, (entries, again_count, base_count, ulps) in run_tasks(tasks, stage="Comparing", execution=execution):
        total, again_equal, base_equal = total + entries, again_equal + again_count, base_equal + base_count
        most_ulps = max(most_ulps, ulps)
    share = again_equal / (total or 1)
    return (share, None, None) if base is None else (share, base_equal / (total or 1), most_ulps)


def _compare(
    again: ModelPlan, tensor: OutputTensor, merged: Checkpoint, base: Checkpoint | None
) -> tuple[int, int, int, float]:
    """Of one tensor: entries, those that merge back, those that equal the base, and the largest distance from it."""
    entries, again_equal, base_equal, ulps = 0, 0, 0, 0.0
    for view in tensor.views:
        if view.name not in tensor.terms:
            continue
        update, row = update_for(again, tensor, view), 0
        others = [_rows_in(other, tensor, view) for other in (merged, base or merged)]
        slabs = zip(stored_rows_of(tensor, view), *others, strict=True)
        for restored, was, original in (parts for slab in slabs for parts in zip(*map(in_cache, slab), strict=True)):
            remade = update.apply(restored.to(update.dtype), row)
            entries += restored.numel()
            again_equal += int((remade.to(was.dtype) == was).sum())
            if base is not None:
                differ = restored != original
                base_equal += restored.numel() - int(differ.sum())
                ulps = max(ulps, _ulps(restored[differ], original[differ], was[differ]))
            row += len(restored)
    return entries, again_equal, base_equal, ulps


def _rows_in(checkpoint: Checkpoint, tensor: OutputTensor, view: MatrixView) -> Iterator[Tensor]:
    """Rows of the same matrix in another checkpoint, through its ties."""
    return rows_of(checkpoint, replace(view, tensor=checkpoint.tied.get(tensor.name, tensor.name)))


def _ulps(restored: Tensor, base: Tensor, merged: Tensor) -> float:
    """The largest distance in units in the last place of the larger of the merged and the base's entry."""
    restored, base, size = (tensor.to(torch.float64) for tensor in (restored, base, merged))
    info = torch.finfo(merged.dtype)
    exponent = torch.frexp(torch.maximum(size.abs(), base.abs()).clamp(min=info.smallest_normal)).exponent
    ulp = info.eps * torch.exp2((exponent - 1).to(torch.float64))
    return float(((restored - base).abs() / ulp).max()) if restored.numel() else 0.0
