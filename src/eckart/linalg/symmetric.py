"""Eigenvalues of symmetric matrices, largest first, on as many threads as help.

LAPACK's reduction to tridiagonal form waits for all its threads at every column. Up to a side of about a thousand one
thread is faster, and on a busy machine, where a thread that waits spins, faster by orders of magnitude.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float64
from torch import Tensor

ONE_THREAD_SIDE = 1024


def eigenvalues(matrix: Tensor) -> Float64[Tensor, " n"]:
    """Eigenvalues of a symmetric matrix, descending; only its upper triangle is read."""
    with _threads_for(matrix):
        return torch.linalg.eigvalsh(matrix, UPLO="U").flip(0)


def eigensystem(matrix: Tensor) -> tuple[Float64[Tensor, " n"], Float64[Tensor, "n n"]]:
    """Eigenvalues, descending, and eigenvectors as columns; only the upper triangle is read."""
    with _threads_for(matrix):
        values, vectors = torch.linalg.eigh(matrix, UPLO="U")
    return values.flip(0), vectors.flip(1)


@contextmanager
def _threads_for(matrix: Tensor) -> Iterator[None]:
    """One thread for a small matrix on the CPU; the caller's number is set again behind it."""
    before = torch.get_num_threads()
    if before == 1 or matrix.device.type != "cpu" or matrix.shape[0] > ONE_THREAD_SIDE:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
