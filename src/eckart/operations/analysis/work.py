"""The work on one matrix: its spectrum, and the noise in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eckart.checkpoint import Checkpoint, MatrixView
from eckart.checkpoint.layouts import counterpart
from eckart.engine import Execution, Record, Task
from eckart.linalg.block_sizes import RESIDENT_BYTES, SLAB_BYTES
from eckart.operations.analysis.matrix import MatrixAnalysis

if TYPE_CHECKING:
    import torch

    from eckart.checkpoint import WeightMatrix
    from eckart.linalg import NoiseEstimate, RowSlabs, Spectrum

FULL_SIDE = 4096  # a complete spectrum takes seconds up to this short side, minutes at twice that
PARTIAL_RANK = 256  # leading singular values of a larger matrix


@dataclass(frozen=True)
class MatrixWork:
    """One matrix of a checkpoint, or of the difference of two, still on disk.

    Attributes:
        tuned: the checkpoint that contains it.
        base: the checkpoint to subtract; None for the weight itself.
        view: the matrix in `tuned`.
        full: whether to compute every singular value of a large matrix too.
        execution: device and seed.
    """

    tuned: Checkpoint
    base: Checkpoint | None
    view: MatrixView
    full: bool
    execution: Execution

    def task(self) -> Task[Record]:
        """The task for the engine."""
        entries, side = math.prod(self.view.stored_shape), min(self.view.stored_shape)
        read = self.tuned.tensors[self.view.tensor].dtype.itemsize * entries * (1 if self.base is None else 2)
        # The matrix and a copy with its signs flipped; the Gram matrix and its eigenvalue solver; slabs in passing.
        memory = 2 * min(4 * entries, RESIDENT_BYTES) + 3 * 8 * min(side, FULL_SIDE) ** 2 + 4 * SLAB_BYTES
        return Task(self.view.name, read, memory, lambda: Record(self.analyze().to_json()))

    def analyze(self) -> MatrixAnalysis:
        """Read the matrix and compute its spectrum; the same bytes give the same numbers in any order of work."""
        from eckart.checkpoint import DifferenceMatrix, WeightMatrix
        from eckart.linalg import partial_spectrum, spectrum
        from eckart.linalg.krylov import resident

        device, generator = self.execution.torch_device(), self.execution.generator(self.view.name)
        weight = WeightMatrix(self.tuned, self.view, device)
        matrix: RowSlabs = weight
        if self.base is not None:
            matrix = DifferenceMatrix(self.tuned, self.base, self.view, device)
        matrix = resident(matrix)
        exact = self.full or min(matrix.shape) <= FULL_SIDE
        values = spectrum(matrix) if exact else partial_spectrum(matrix, rank=PARTIAL_RANK, generator=generator)
        noise = self._noise(matrix, values, weight, generator)
        return MatrixAnalysis(self.view.name, self.view.shape, self._dtype(), values, noise)

    def _noise(
        self, matrix: RowSlabs, values: Spectrum, weight: WeightMatrix, generator: torch.Generator
    ) -> NoiseEstimate | None:
        """None if a weight was quantized: its rounding is not that of a floating-point grid."""
        from eckart.linalg import bulk_noise, difference_noise

        if self.tuned.tensors[self.view.tensor].quantization:
            return None
        if self.base is None:
            return bulk_noise(matrix, values)
        if self.base.tensors[counterpart(self.base, self.view).tensor].quantization:
            return None
        return difference_noise(matrix, values, weight, generator=generator)

    def _dtype(self) -> str:
        info = self.tuned.tensors[self.view.tensor]
        return info.quantization or info.dtype.name
