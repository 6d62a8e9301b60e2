"""Is this checkpoint that base with these adapters baked in? Every tensor of both is met once, in slabs of rows."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from eckart.adapter.adapter import Adapter
from eckart.checkpoint import Checkpoint, MatrixView, open_checkpoint
from eckart.checkpoint.layouts import as_view, is_buffer
from eckart.checkpoint.matrices import stored_rows
from eckart.engine import Execution, Task, run_tasks
from eckart.errors import OptionError
from eckart.formats import rename_for_base
from eckart.formats.sources import Source, name_of, open_adapter_or_checkpoint
from eckart.linalg.slabs import SLAB_BYTES
from eckart.operations.comparison.merge_check import MergeCheck, MergedMatrix
from eckart.operations.comparison.merge_measure import Measure
from eckart.operations.placement import Places, Term, find_places
from eckart.operations.preview import Match, Preview
from eckart.operations.weight_update import update_of
from eckart.operations.weights import checked_weights
from eckart.result import Skipped

DEFAULT_EXECUTION = Execution()


def check_merge(
    base: Source,
    adapters: Source | Sequence[Source],
    merged: Source,
    *,
    weights: Sequence[float] | None = None,
    execution: Execution = DEFAULT_EXECUTION,
) -> MergeCheck:
    """Whether `merged` equals `base` + Σ wᵢ·Δᵢ of the adapters, tensor by tensor.

    Args:
        base: what the adapters are for.
        adapters: one or several.
        merged: what is claimed to hold them.
        weights: that they were merged with; all 1 by default.
        execution: workers, memory and progress.

    Returns:
        `MergeCheck`: a verdict; of every changed matrix its distance from the claim, and the weight of the update that
        fits it best; and every tensor that the claim leaves alone and that changed.

    Raises:
        SourceError, FileFormatError: a source cannot be read.
        MismatchError: keys of the adapters without a place in the base; all at once.
        OptionError: weights that are not one for each adapter, or a source of the wrong sort.
    """
    return plan_merge_check(base, adapters, merged, weights=weights, execution=execution).compare()


def plan_merge_check(
    base: Source,
    adapters: Source | Sequence[Source],
    merged: Source,
    *,
    weights: Sequence[float] | None = None,
    execution: Execution = DEFAULT_EXECUTION,
) -> "MergeClaim":
    """The checked work of `check_merge`, from headers alone: `.preview()` tells of it, `.compare()` does it."""
    execution.check()
    sources = list(adapters) if isinstance(adapters, Sequence) and not isinstance(adapters, str) else [adapters]
    sides = [open_adapter_or_checkpoint(source) for source in sources]
    opened = [side for side in sides if isinstance(side, Adapter)]
    if len(opened) < len(sides) or isinstance(base, Adapter) or isinstance(merged, Adapter):
        msg = "a merge is checked with two checkpoints, the base and the merged one, and adapters; got another sort"
        raise OptionError(msg)
    found = open_checkpoint(base)
    opened = [rename_for_base(found, adapter) for adapter in opened]
    places = find_places(found, [adapter.outline() for adapter in opened])
    given = checked_weights(weights, len(opened))
    return MergeClaim(found, open_checkpoint(merged), opened, tuple(map(name_of, sources)), given, places, execution)


@dataclass(frozen=True)
class _Part:
    """One matrix of a tensor, or a tensor that is none, in both checkpoints; untouched without terms."""

    name: str
    base: MatrixView
    merged: MatrixView
    terms: Sequence[Term]


@dataclass(frozen=True)
class MergeClaim:
    """A claim whose adapters were found to fit the base.

    Attributes:
        base, merged: the checkpoints.
        adapters, names, weights: what is claimed to be baked in, and how the user names it.
        places: what of the base each key changes.
        execution: how the work is run.
    """

    base: Checkpoint
    merged: Checkpoint
    adapters: list[Adapter]
    names: tuple[str, ...]
    weights: tuple[float, ...]
    places: Places
    execution: Execution

    @property
    def inputs(self) -> list[Path | None]:
        """What is read, and so must not be replaced."""
        files = [file for adapter in self.adapters for file in adapter.files]
        return [*files, self.base.folder, self.merged.folder]

    def preview(self) -> Preview:
        """What would be read and checked; nothing is read for it."""
        parts, faults, skipped = self._parts()
        outlines = [adapter.outline() for adapter in self.adapters]

        def ranks(part: _Part) -> tuple[int, ...]:
            found = {
                term.adapter: outlines[term.adapter][term.key].rank for term in part.terms if term.part == "update"
            }
            return tuple(found.get(number, 0) for number in range(len(outlines)))

        matches = [Match(part.name, part.base.shape, ranks(part)) for part in parts if part.terms]
        differing = [Skipped(fault.partition(":")[0], fault.partition(": ")[2]) for fault in faults]
        return Preview("compare", matches, [*differing, *skipped], sum(map(self._nbytes, parts)), 0)

    def compare(self) -> MergeCheck:
        """Read both checkpoints once and tell whether the claim holds."""
        began = time.monotonic()
        parts, faults, skipped = self._parts()
        tasks = [
            Task(part.name, self._nbytes(part), 24 * SLAB_BYTES, lambda part=part: self._check(part)) for part in parts
        ]
        found = {task.name: result for task, result in run_tasks(tasks, stage="Checking", execution=self.execution)}
        results = [(part.name, found[part.name]) for part in parts]
        return MergeCheck(
            merged=self.merged.source,
            base=self.base.source,
            adapters=self.names,
            weights=self.weights,
            matrices=[result for _, result in results if isinstance(result, MergedMatrix)],
            altered=[name for name, result in results if result is False],
            faults=faults,
            not_checked=skipped,
            unchanged=sum(result is True for _, result in results),
            seconds=time.monotonic() - began,
        )

    def _parts(self) -> tuple[list[_Part], list[str], list[Skipped]]:
        """Everything to check, what keeps the checkpoints from being compared, and what cannot be checked."""
        parts, faults, skipped = [], [], []
        changes = self.places.changes
        by_tensor: dict[str, dict[str, MatrixView]] = {}
        for view in self.places.views.values():
            by_tensor.setdefault(view.tensor, {})[view.name] = view
        for name in dict.fromkeys([*self.base.tensors, *self.merged.tensors, *changes]):
            old, new = (side.tensors.get(side.tied.get(name, name)) for side in (self.base, self.merged))
            known = old or new
            if known is None or is_buffer(known):
                continue
            if old is None or new is None:
                faults.append(f"{name}: only in {self.merged.source if old is None else self.base.source}")
            elif old.shape != new.shape:
                faults.append(f"{name}: {old.shape} in the base, {new.shape} in the merged checkpoint")
            elif new.quantization and name in changes:
                skipped.append(Skipped(name, f"stored as {new.quantization}: its rounding hides the update"))
            else:
                terms = changes.get(name, {})
                views = list(by_tensor.get(old.name, {}).values()) if terms else []
                for view in views or [as_view(old.name, old.shape)]:
                    label = name if old.name != name or view.name not in self.places.views else view.name
                    own = terms.get(view.name, terms.get(name, ()))
                    parts.append(_Part(label, view, replace(view, tensor=new.name), own))
        return parts, faults, skipped

    def _nbytes(self, part: _Part) -> int:
        sizes = [side.tensors[view.tensor].dtype.itemsize for side, view in self._sides(part)]
        return math.prod(part.base.stored_shape) * sum(sizes)

    def _sides(self, part: _Part) -> list[tuple[Checkpoint, MatrixView]]:
        return [(self.base, part.base), (self.merged, part.merged)]

    def _rows(self, part: _Part) -> Iterator[tuple[Tensor, Tensor]]:
        """Row blocks of the base and of the merged checkpoint, as they are stored."""
        if not part.base.tensor_shape:
            old, new = (side.read(view.tensor).reshape(1, 1) for side, view in self._sides(part))
            return iter([(old, new)])
        return zip(*(stored_rows(side, view) for side, view in self._sides(part)), strict=True)

    def _check(self, part: _Part) -> MergedMatrix | bool:
        """Measures of a changed matrix; of another whether it is as it was, up to the dtype it is stored in."""
        if not part.terms:
            return all(_same(old, new) for old, new in self._rows(part))
        update = update_of(
            *(part.terms, self.adapters, self.weights),
            dtype=torch.float64,
            view=part.base,
            slabs=lambda: (old.to(torch.float64) for old, _ in self._rows(part)),
        )
        measure, start = Measure(update, len(part.terms)), 0
        for old, new in self._rows(part):
            for base, merged in zip(old.split(_rows_at_once(old)), new.split(_rows_at_once(old)), strict=True):
                measure.take(base.to(torch.float64), merged, start)
                start += len(base)
        return measure.result(part.name, part.base.shape)


def _rows_at_once(slab: Tensor) -> int:
    """Rows of which a dozen float64 copies fill a slab or two."""
    return max(1, 2**18 // max(1, slab.shape[1]))


def _same(old: Tensor, new: Tensor) -> bool:
    """Whether rows are equal once the base's are in the merged dtype; NaN equals NaN where nothing was changed."""
    return torch.equal(old.to(new.dtype), new) or torch.allclose(old.to(new), new, rtol=0, atol=0, equal_nan=True)
