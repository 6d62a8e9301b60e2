"""The work on one matrix: its spectrum, and the noise that explains part of it."""

import math
from dataclasses import dataclass

import torch

from eckart.checkpoint import Checkpoint, DifferenceMatrix, MatrixView, WeightMatrix
from eckart.checkpoint.layouts import counterpart
from eckart.engine import Execution, Record, Task
from eckart.linalg import NoiseEstimate, RowSlabs, Spectrum, bulk_noise, difference_noise, partial_spectrum, spectrum
from eckart.linalg.krylov import RESIDENT_BYTES, resident
from eckart.linalg.slabs import SLAB_BYTES
from eckart.operations.analysis.matrix import MatrixAnalysis

FULL_SIDE = 4096  # a whole spectrum takes seconds up to this short side, minutes at twice it
PARTIAL_RANK = 256  # leading singular values of a larger matrix


@dataclass(frozen=True)
class MatrixWork:
    """One matrix of a checkpoint, or of the difference of two, still on disk.

    Attributes:
        tuned: the checkpoint that holds it.
        base: what is subtracted; None for the weight itself.
        view: where it lies in `tuned`.
        full: whether every singular value is wanted, however large the matrix.
        execution: on what device, with which seed.
    """

    tuned: Checkpoint
    base: Checkpoint | None
    view: MatrixView
    full: bool
    execution: Execution

    def task(self) -> Task[Record]:
        """The work as the engine takes it."""
        entries, side = math.prod(self.view.stored_shape), min(self.view.stored_shape)
        read = self.tuned.tensors[self.view.tensor].dtype.itemsize * entries * (1 if self.base is None else 2)
        # The matrix and a copy with its signs flipped; the Gram matrix and its eigenvalue solver; slabs in passing.
        held = 2 * min(4 * entries, RESIDENT_BYTES) + 3 * 8 * min(side, FULL_SIDE) ** 2 + 4 * SLAB_BYTES
        return Task(self.view.name, read, held, lambda: Record(self.analyze().to_json()))

    def analyze(self) -> MatrixAnalysis:
        """Read the matrix and take its spectrum; the same bytes give the same numbers, in any order of work."""
        device, generator = self.execution.torch_device(), self.execution.generator(self.view.name)
        weight = WeightMatrix(self.tuned, self.view, device)
        matrix: RowSlabs = weight
        if self.base is not None:
            matrix = DifferenceMatrix(self.tuned, self.base, self.view, device)
        matrix = resident(matrix)
        exact = self.full or min(matrix.shape) <= FULL_SIDE
        known = spectrum(matrix) if exact else partial_spectrum(matrix, rank=PARTIAL_RANK, generator=generator)
        noise = self._noise(matrix, known, weight, generator)
        return MatrixAnalysis(self.view.name, self.view.shape, self._dtype(), known, noise)

    def _noise(
        self, matrix: RowSlabs, known: Spectrum, weight: WeightMatrix, generator: torch.Generator
    ) -> NoiseEstimate | None:
        """None where a weight was quantized: its rounding is not that of a floating-point grid."""
        if self.tuned.tensors[self.view.tensor].quantization:
            return None
        if self.base is None:
            return bulk_noise(matrix, known)
        if self.base.tensors[counterpart(self.base, self.view).tensor].quantization:
            return None
        return difference_noise(matrix, known, weight, generator=generator)

    def _dtype(self) -> str:
        info = self.tuned.tensors[self.view.tensor]
        return info.quantization or info.dtype.name


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")
