"""A base matrix plus an update, streamed, and the intruder dimensions of updates."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from eckart.checkpoint import WeightMatrix
from eckart.engine import Execution
from eckart.linalg import InMemory, RowSlabs
from eckart.linalg.intruder import intruders
from eckart.linalg.slabs import Streamed, materialize
from eckart.operations.comparison.result import MatrixComparison
from eckart.operations.weight_update import Update


def updated(weight: WeightMatrix, update: Update, device: torch.device) -> Streamed:
    """A matrix plus an update, computed on the CPU; its slabs are on `device`."""

    def blocks() -> Iterator[Tensor]:
        start = 0
        for slab in weight.slabs():
            yield update.apply(slab, start).to(device)
            start += len(slab)

    return Streamed(weight.shape, weight.dtype, device, blocks)


def intruders_of(
    compared: MatrixComparison, weight: WeightMatrix, tuned: Iterable[RowSlabs], execution: Execution
) -> MatrixComparison:
    """The comparison with the intruder dimensions of two tuned matrices, in the space of outputs."""

    def upright(matrix: RowSlabs) -> RowSlabs:
        return InMemory(materialize(matrix).T, stored=matrix.dtype) if weight.view.transposed else matrix

    base, name = upright(weight), weight.view.name
    a, b = (intruders(base, upright(matrix), generator=execution.generator(name)) for matrix in tuned)
    return replace(compared, intruders=(a, b))
