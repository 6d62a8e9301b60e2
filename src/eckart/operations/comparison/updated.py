"""A base matrix plus an update, streamed, and the intruder dimensions of updates."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from eckart.checkpoint import WeightMatrix
from eckart.engine import Execution
from eckart.linalg import InMemory, RowSlabs
from eckart.linalg.intruder import intruders
from eckart.linalg.slabs import materialize
from eckart.operations.comparison.result import MatrixComparison
from eckart.operations.weight_update import Update


class UpdatedMatrix:
    """A matrix plus an update, computed on the CPU, as `RowSlabs` on any device."""

    def __init__(self, weight: WeightMatrix, update: Update, device: torch.device) -> None:
        self.weight = weight
        self.update = update
        self.shape = weight.shape
        self.dtype = weight.dtype
        self.device = device

    def slabs(self) -> Iterator[Tensor]:
        """Consecutive row blocks of the changed matrix."""
        start = 0
        for slab in self.weight.slabs():
            yield self.update.apply(slab, start).to(self.device)
            start += len(slab)


def intruders_of(
    compared: MatrixComparison, weight: WeightMatrix, tuned: Iterable[RowSlabs], execution: Execution
) -> MatrixComparison:
    """The comparison with the intruder dimensions of two tuned matrices, in the space of outputs."""

    def upright(matrix: RowSlabs) -> RowSlabs:
        return InMemory(materialize(matrix).T, stored=matrix.dtype) if weight.view.transposed else matrix

    base, name = upright(weight), weight.view.name
    a, b = (intruders(base, upright(matrix), generator=execution.generator(name)) for matrix in tuned)
    return replace(compared, intruders=(a, b))
