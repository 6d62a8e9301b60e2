"""Compares two checkpoints, or their updates of one base: streamed, with their leading singular directions."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.checkpoint import Checkpoint, MatrixView, compare_layouts, layout, select
from eckart.checkpoint.layouts import counterpart
from eckart.engine import Execution, Task, run_tasks
from eckart.errors import MismatchError
from eckart.linalg.block_sizes import RESIDENT_BYTES, SLAB_BYTES
from eckart.operations.comparison.result import Comparison, MatrixComparison
from eckart.operations.preview import Match, Preview, stored_as
from eckart.result import Skipped

if TYPE_CHECKING:
    from eckart.linalg import RowSlabs


@dataclass(frozen=True)
class CheckpointPair:
    """Two checkpoints with the same matrices, checked from headers.

    Attributes:
        a, b: the two.
        base: the checkpoint to subtract from both; None to compare the weights themselves.
        views: the matrices in `a`.
        skipped: every other tensor of `a`, and why.
        directions: number of leading singular directions for angles and overlap.
        execution: how the work is run.
    """

    a: Checkpoint
    b: Checkpoint
    base: Checkpoint | None
    views: list[MatrixView]
    skipped: list[Skipped]
    directions: int
    execution: Execution

    @classmethod
    def checked(
        cls,
        a: Checkpoint,
        b: Checkpoint,
        base: Checkpoint | None,
        *,
        directions: int,
        patterns: tuple[Sequence[str], Sequence[str]],
        execution: Execution,
    ) -> CheckpointPair:
        """Plan the comparison of two checkpoints from headers.

        Raises:
            MismatchError: the checkpoints are not of one model, or a pattern matches nothing.
        """
        target, exclude = patterns
        pairs = [(a, b)] if base is None else [(base, a), (base, b)]
        for first, second in pairs:
            if faults := compare_layouts(first, second, exclude):
                msg = f"{first.source} and {second.source} are not of one model (called base and tuned below)"
                raise MismatchError.listing(msg, faults)
        found = layout(a)
        views = select(found, target or [".*"], exclude) if target or exclude else found.matrices
        names = {view.name for view in views}
        unchosen = [Skipped(view.name, "not targeted") for view in found.matrices if view.name not in names]
        return cls(a, b, base, views, [*found.skipped, *unchosen], directions, execution)

    @property
    def inputs(self) -> list[Path]:
        """Files that are read, which no output may replace."""
        return [file for side in self._sides() for file in side.files]

    def preview(self) -> Preview:
        """What would be read and compared, from headers."""
        matches = [Match(view.name, view.shape, (), stored=stored_as(view, *self._sides())) for view in self.views]
        return Preview("compare", matches, self.skipped, sum(map(self._nbytes, self.views)), 0)

    def compare(self) -> Comparison:
        """Stream and compare every matrix; matrices of up to half a gigabyte are loaded, one side at a time."""
        began = time.monotonic()
        tasks = [self._task(view) for view in self.views]
        results = {task.name: result for task, result in run_tasks(tasks, stage="Comparing", execution=self.execution)}
        return Comparison(
            kind="checkpoints" if self.base is None else "updates",
            a=self.a.source,
            b=self.b.source,
            base=None if self.base is None else self.base.source,
            matrices=[results[view.name] for view in self.views],
            unpaired=[],
            skipped=self.skipped,
            seconds=time.monotonic() - began,
        )

    def _nbytes(self, view: MatrixView) -> int:
        stored = [side.tensors[side.tied.get(view.tensor, view.tensor)] for side in self._sides()]
        return math.prod(view.stored_shape) * sum(info.dtype.itemsize for info in stored)

    def _sides(self) -> list[Checkpoint]:
        return [self.a, self.b, *([self.base] if self.base else [])]

    def _task(self, view: MatrixView) -> Task[MatrixComparison]:
        entries, side = math.prod(view.stored_shape), min(view.stored_shape)
        memory = (1 if self.base is None else 3) * min(4 * entries, RESIDENT_BYTES) + 6 * SLAB_BYTES
        memory += 24 * self.directions * sum(view.stored_shape) + (0 if self.base is None else 3 * 8 * side**2)
        return Task(view.name, self._nbytes(view), memory, lambda: self._compare_one(view))

    def _compare_one(self, view: MatrixView) -> MatrixComparison:
        from eckart.checkpoint import DifferenceMatrix, WeightMatrix
        from eckart.operations.comparison.measures import compare_matrices
        from eckart.operations.comparison.updated import intruders_of

        device = self.execution.torch_device()
        sides = [WeightMatrix(side, counterpart(side, view), device) for side in (self.a, self.b)]
        matrices: list[RowSlabs] = [*sides]
        if self.base is not None:
            matrices = [DifferenceMatrix(side, self.base, counterpart(side, view), device) for side in (self.a, self.b)]
        compared = compare_matrices(*matrices, view=view, directions=self.directions, execution=self.execution)
        if self.base is None:
            return compared
        return intruders_of(
            compared, WeightMatrix(self.base, counterpart(self.base, view), device), sides, self.execution
        )
