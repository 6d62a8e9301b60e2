"""Whether a checkpoint is a base with adapters merged into it. Each tensor of both is read once, in slabs of rows."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from eckart.checkpoint.layouts import as_view, is_buffer
from eckart.engine import Execution, Task, run_tasks
from eckart.errors import MismatchError
from eckart.formats.sources import Source, name_of, open_adapter, open_model
from eckart.linalg.block_sizes import SLAB_BYTES
from eckart.operations.comparison.merge_check import MergeCheck, MergedMatrix
from eckart.operations.fitting import fitted
from eckart.operations.placement import Places, Term, find_places
from eckart.operations.preview import Match, Preview
from eckart.operations.weights import checked_weights
from eckart.result import Skipped

if TYPE_CHECKING:
    from pathlib import Path

    from eckart.adapter.adapter import Adapter
    from eckart.checkpoint import Checkpoint, MatrixView


def check_merge(
    base: Source,
    adapters: Source | Sequence[Source],
    merged: Source,
    *,
    weights: Sequence[float] | None = None,
    execution: Execution = Execution(),
) -> MergeCheck:
    """Whether `merged` equals `base` + Σ wᵢ·Δᵢ of the adapters, tensor by tensor.

    Args:
        base: the model that the adapters are for.
        adapters: one or several.
        merged: the model that is claimed to contain them.
        weights: the claimed weight of each; default 1.
        execution: workers, memory and progress.

    Returns:
        `MergeCheck`: a verdict; for every changed matrix its distance from the claim, and the weights of the update
        that explain it; and every tensor that changed although the claim does not change it.

    Raises:
        SourceError, FileFormatError: a source cannot be read.
        MismatchError: keys of the adapters that the base lacks or has with a different shape; all at once.
        OptionError: weights that are not one per adapter, or a source of the wrong kind.
    """
    return plan_merge_check(base, adapters, merged, weights=weights, execution=execution).compare()


def plan_merge_check(
    base: Source,
    adapters: Source | Sequence[Source],
    merged: Source,
    *,
    weights: Sequence[float] | None = None,
    execution: Execution = Execution(),
) -> MergeClaim:
    """Plan `check_merge` from headers: `.preview()` describes the work, `.compare()` does it."""
    execution.check()
    sources = list(adapters) if isinstance(adapters, Sequence) and not isinstance(adapters, str) else [adapters]
    original, result = open_model(base), open_model(merged)
    opened = [fitted(open_adapter(source), original) for source in sources]
    if any(adapter.config.get("layer_replication") for adapter in opened):
        msg = "a merge of an adapter that repeats layers (layer_replication) cannot be checked against its base"
        raise MismatchError(msg)
    places = find_places(original, [adapter.outline() for adapter in opened])
    parts, faults, skipped = _parts(original, result, places)
    return MergeClaim(
        base=original,
        merged=result,
        adapters=opened,
        names=tuple(map(name_of, sources)),
        weights=checked_weights(weights, len(opened)),
        parts=parts,
        faults=faults,
        skipped=skipped,
        execution=execution,
    )


@dataclass(frozen=True)
class ClaimedMatrix:
    """One matrix, or another tensor, in both checkpoints; without terms the claim leaves it unchanged."""

    name: str
    base: MatrixView
    merged: MatrixView
    terms: Sequence[Term]


@dataclass(frozen=True)
class MergeClaim:
    """The claim that a checkpoint is a base with adapters merged into it, checked from headers.

    Attributes:
        base, merged: the checkpoints.
        adapters, names, weights: what is claimed to be merged, and the user's names for it.
        parts: everything to check.
        faults: tensors that one checkpoint lacks or has with a different shape.
        skipped: what cannot be checked, and why.
        execution: how the work is run.
    """

    base: Checkpoint
    merged: Checkpoint
    adapters: list[Adapter]
    names: tuple[str, ...]
    weights: tuple[float, ...]
    parts: Sequence[ClaimedMatrix]
    faults: Sequence[str]
    skipped: Sequence[Skipped]
    execution: Execution

    @property
    def inputs(self) -> list[Path]:
        """Files that are read, which no output may replace."""
        files = [file for adapter in self.adapters for file in adapter.files]
        return [*files, *self.base.files, *self.merged.files]

    def preview(self) -> Preview:
        """What would be read and checked, from headers."""
        outlines = [adapter.outline() for adapter in self.adapters]

        def ranks(part: ClaimedMatrix) -> tuple[int, ...]:
            updates = {
                term.adapter: outlines[term.adapter][term.key].rank for term in part.terms if term.part == "update"
            }
            return tuple(updates.get(number, 0) for number in range(len(outlines)))

        matches = [Match(part.name, part.base.shape, ranks(part)) for part in self.parts if part.terms]
        differing = [Skipped(fault.partition(":")[0], fault.partition(": ")[2]) for fault in self.faults]
        return Preview("compare", matches, [*differing, *self.skipped], sum(map(self._nbytes, self.parts)), 0)

    def compare(self) -> MergeCheck:
        """Read both checkpoints once and decide whether the claim is true."""
        began = time.monotonic()
        tasks = [
            Task(part.name, self._nbytes(part), 24 * SLAB_BYTES, lambda part=part: self._check(part))
            for part in self.parts
        ]
        by_name = {task.name: result for task, result in run_tasks(tasks, stage="Checking", execution=self.execution)}
        results = [(part.name, by_name[part.name]) for part in self.parts]
        return MergeCheck(
            merged=self.merged.source,
            base=self.base.source,
            adapters=self.names,
            weights=self.weights,
            matrices=[result for _, result in results if isinstance(result, MergedMatrix)],
            altered=[name for name, result in results if result is False],
            faults=self.faults,
            not_checked=self.skipped,
            unchanged=sum(result is True for _, result in results),
            seconds=time.monotonic() - began,
        )

    def _nbytes(self, part: ClaimedMatrix) -> int:
        sizes = [side.tensors[view.tensor].dtype.itemsize for side, view in self._sides(part)]
        return math.prod(part.base.stored_shape) * sum(sizes)

    def _sides(self, part: ClaimedMatrix) -> tuple[tuple[Checkpoint, MatrixView], tuple[Checkpoint, MatrixView]]:
        return (self.base, part.base), (self.merged, part.merged)

    def _check(self, part: ClaimedMatrix) -> MergedMatrix | bool:
        """Measures of a changed matrix; for any other whether it is unchanged, up to the dtype it is stored in."""
        from eckart.operations.comparison.merge_measure import is_unchanged, measured

        base, merged = self._sides(part)
        if not part.terms:
            return is_unchanged(base, merged)
        return measured(part.name, base, merged, part.terms, adapters=self.adapters, weights=self.weights)


def _parts(
    base: Checkpoint, merged: Checkpoint, places: Places
) -> tuple[list[ClaimedMatrix], list[str], list[Skipped]]:
    """Everything to check, tensors that cannot be compared, and what cannot be checked."""
    parts, faults, skipped = [], [], []
    changes = places.changes
    by_tensor: dict[str, dict[str, MatrixView]] = {}
    for view in places.views.values():
        by_tensor.setdefault(view.tensor, {})[view.name] = view
    for name in dict.fromkeys([*base.tensors, *merged.tensors, *changes]):
        old, new = (side.tensors.get(side.tied.get(name, name)) for side in (base, merged))
        either = old or new
        if either is None or is_buffer(either):
            continue
        if old is None or new is None:
            faults.append(f"{name}: only in {merged.source if old is None else base.source}")
        elif old.shape != new.shape:
            faults.append(f"{name}: {old.shape} in the base, {new.shape} in the merged checkpoint")
        elif new.quantization and name in changes:
            skipped.append(Skipped(name, f"stored as {new.quantization}: its rounding hides the update"))
        else:
            terms = changes.get(name, {})
            views = list(by_tensor.get(old.name, {}).values()) if terms else []
            for view in views or [as_view(old.name, old.shape)]:
                label = name if old.name != name or view.name not in places.views else view.name
                its_terms = terms.get(view.name, terms.get(name, ()))
                parts.append(ClaimedMatrix(label, view, replace(view, tensor=new.name), its_terms))
    return parts, faults, skipped
