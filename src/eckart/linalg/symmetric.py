"""Gram matrices and symmetric eigenvalues, by whichever LAPACK is faster for the size and device.

Large matrices on the CPU go to NumPy: its OpenBLAS takes two thirds of the time of torch's MKL on AMD processors and
computes only half of AᵀA. Small ones stay with torch, on one thread: LAPACK's threads wait for each other at every
column, and the threads of a second library would compete with torch's for cores. On a GPU torch does all of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

SMALL_SIDE = 256


def self_product(columns: Float[Tensor, "m n"]) -> Float[Tensor, "n n"]:
    """AᵀA; infinite where it overflows, without a warning."""
    if not _is_numpys(columns):
        return columns.T @ columns
    array = columns.numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        return torch.from_numpy(array.T @ array)


def eigenvalues(matrix: Float64[Tensor, "n n"]) -> Float64[Tensor, " n"]:
    """Eigenvalues of a symmetric matrix, descending; only its upper triangle is read."""
    if _is_numpys(matrix):
        return torch.from_numpy(np.linalg.eigvalsh(matrix.numpy(), UPLO="U")).flip(0)
    with _one_thread():
        return torch.linalg.eigvalsh(matrix, UPLO="U").flip(0)


def eigensystem(matrix: Float64[Tensor, "n n"]) -> tuple[Float64[Tensor, " n"], Float64[Tensor, "n n"]]:
    """Eigenvalues, descending, and eigenvectors as columns; only the upper triangle is read."""
    if _is_numpys(matrix):
        values, vectors = map(torch.from_numpy, np.linalg.eigh(matrix.numpy(), UPLO="U"))
    else:
        with _one_thread():
            values, vectors = torch.linalg.eigh(matrix, UPLO="U")
    return values.flip(0), vectors.flip(1)


def _is_numpys(matrix: Tensor) -> bool:
    """Whether NumPy processes a matrix: large, and on the CPU."""
    return matrix.device.type == "cpu" and matrix.shape[1] > SMALL_SIDE


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread inside the block."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
