"""The work on one matrix: its spectrum, and the noise in it."""

from __future__ import annotations

import math

from eckart.checkpoint import Checkpoint, MatrixView
from eckart.checkpoint.layouts import counterpart
from eckart.engine import Execution, Record, Task
from eckart.linalg.block_sizes import RESIDENT_BYTES, SLAB_BYTES
from eckart.operations.analysis.matrix import MatrixAnalysis

FULL_SIDE = 4096  # a complete spectrum takes seconds up to this short side, minutes at twice that
PARTIAL_RANK = 256  # leading singular values of a larger matrix


def matrix_task(
    tuned: Checkpoint, base: Checkpoint | None, view: MatrixView, *, full: bool, execution: Execution
) -> Task[Record]:
    """The task of analyzing one matrix of a checkpoint, or of the difference of two, still on disk.

    Args:
        tuned: the checkpoint that contains it.
        base: the checkpoint to subtract; None for the weight itself.
        view: the matrix in `tuned`.
        full: whether to compute every singular value of a large matrix too.
        execution: device and seed.
    """
    entries, side = math.prod(view.stored_shape), min(view.stored_shape)
    stored = [it.tensors[it.tied.get(view.tensor, view.tensor)] for it in (tuned, base) if it is not None]
    read = sum(info.nbytes * entries // max(math.prod(info.shape), 1) for info in stored)
    # The matrix and a copy with its signs flipped; the Gram matrix and its eigenvalue solver; slabs in passing.
    memory = 2 * min(4 * entries, RESIDENT_BYTES) + 3 * 8 * min(side, FULL_SIDE) ** 2 + 4 * SLAB_BYTES

    def analyze() -> Record:
        return Record(_analyzed(tuned, base, view, full=full, execution=execution).facts())

    return Task(view.name, read, memory, analyze)


def _analyzed(
    tuned: Checkpoint, base: Checkpoint | None, view: MatrixView, *, full: bool, execution: Execution
) -> MatrixAnalysis:
    """Read the matrix and compute its spectrum; the same bytes give the same numbers in any order of work."""
    from eckart.checkpoint import DifferenceMatrix, WeightMatrix
    from eckart.linalg import bulk_noise, difference_noise, partial_spectrum, spectrum
    from eckart.linalg.krylov import resident

    device, generator = execution.torch_device(), execution.generator(view.name)
    weight = WeightMatrix(tuned, view, device)
    matrix = resident(weight if base is None else DifferenceMatrix(tuned, base, view, device))
    exact = full or min(matrix.shape) <= FULL_SIDE
    values = spectrum(matrix) if exact else partial_spectrum(matrix, rank=PARTIAL_RANK, generator=generator)
    stored = [tuned.tensors[view.tensor], *([] if base is None else [base.tensors[counterpart(base, view).tensor]])]
    if any(info.quantization for info in stored):
        noise = None  # the rounding of a quantized weight is not that of a floating-point grid
    elif base is None:
        noise = bulk_noise(matrix, values)
    else:
        noise = difference_noise(matrix, values, weight, generator=generator)
    return MatrixAnalysis(view.name, view.shape, stored[0].stored, values, noise)
