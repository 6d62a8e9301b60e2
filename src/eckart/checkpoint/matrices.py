"""Matrices on disk as row slabs: a weight, or the difference of two, never entirely in memory."""

from collections.abc import Iterator

import torch
from torch import Tensor

from eckart.checkpoint.ahead import on_device
from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.layouts import MatrixView, counterpart
from eckart.errors import NotFiniteError
from eckart.linalg.finite import all_finite, require_finite
from eckart.linalg.slabs import compute_dtype, rows_per_slab


class WeightMatrix:
    """One matrix of a checkpoint, in its stored orientation, as `RowSlabs`.

    Slabs are float32 (float64 if stored in float64). NaN and Inf raise NotFiniteError.
    """

    def __init__(self, checkpoint: Checkpoint, view: MatrixView, device: torch.device | str = "cpu") -> None:
        self.checkpoint = checkpoint
        self.view = view
        self.shape = view.stored_shape
        self.dtype = checkpoint.tensors[view.tensor].dtype.torch
        self.device = torch.device(device)

    def slabs(self) -> Iterator[Tensor]:
        """Consecutive row blocks of at most SLAB_BYTES in float32."""
        for slab in self.upcast():
            self.require_finite(slab)
            yield slab

    def upcast(self) -> Iterator[Tensor]:
        """The slabs before they are checked."""
        for rows in on_device(stored_rows(self.checkpoint, self.view), self.device):
            yield rows.to(compute_dtype(self))

    def require_finite(self, slab: Tensor) -> None:
        """Refuse a slab that contains NaN or Inf.

        Raises:
            NotFiniteError: it does.
        """
        require_finite(
            slab,
            f"{self.checkpoint.source}: {self.view.name}",
            rows=lambda: stored_rows(self.checkpoint, self.view),
            remedy=f"repair the checkpoint, or skip the matrix with `exclude={self.view.module}`",
        )


class DifferenceMatrix:
    """`tuned` minus `base` of one matrix, as `RowSlabs`; both are upcast before they are subtracted.

    Args:
        view: from the layout of `tuned`; if `base` ties the tensor to another, that one is subtracted.
    """

    def __init__(
        self, tuned: Checkpoint, base: Checkpoint, view: MatrixView, device: torch.device | str = "cpu"
    ) -> None:
        self.tuned = WeightMatrix(tuned, view, device)
        self.base = WeightMatrix(base, counterpart(base, view), device)
        self.view = view
        self.shape = view.stored_shape
        self.dtype = self.tuned.dtype
        self.device = self.tuned.device

    def slabs(self) -> Iterator[Tensor]:
        """Consecutive row blocks of the difference."""
        for tuned, base in zip(self.tuned.upcast(), self.base.upcast(), strict=True):
            difference = tuned - base
            # NaN and Inf survive the difference, so that one check covers three tensors.
            if not all_finite(difference):
                self.tuned.require_finite(tuned)
                self.base.require_finite(base)
                largest = float((tuned.to(torch.float64) - base.to(torch.float64)).abs().max())
                dtype, skip = str(difference.dtype).removeprefix("torch."), f"skip it with `exclude={self.view.module}`"
                msg = f"{self.view.name}: tuned minus base is {largest:.4g}, more than {dtype} holds; {skip}"
                raise NotFiniteError(msg)
            yield difference


def stored_rows(checkpoint: Checkpoint, view: MatrixView) -> Iterator[Tensor]:
    """Row blocks of a matrix in the stored dtype, each at most SLAB_BYTES once it is float32."""
    rows, columns = view.stored_shape
    step = rows_per_slab(columns)
    if view.kind == "expert":
        # An expert is one entry of the tensor's first dimension: read it once and yield it in slabs.
        expert = view.first_row // rows
        yield from checkpoint.rows(view.tensor, expert, expert + 1).reshape(rows, columns).split(step)
        return
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        yield checkpoint.rows(view.tensor, start, stop).reshape(stop - start, columns)


def rows_of(checkpoint: Checkpoint, view: MatrixView) -> Iterator[Tensor]:
    """Row blocks in the stored dtype, on the CPU; also of a scalar."""
    if not view.tensor_shape:
        return iter([checkpoint.read(view.tensor).reshape(1, 1).cpu()])
    return (rows.cpu() for rows in stored_rows(checkpoint, view))
