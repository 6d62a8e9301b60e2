"""Matrices whose singular values are known because they were planted, and one that can only be streamed."""

import math
import weakref
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q


def planted(values: Tensor, shape: tuple[int, int], *, seed: int = 0) -> Tensor:
    """A float64 matrix with these singular values, zero beyond them, and random singular vectors."""
    generator = seeded(seed)
    left, right = (orthonormal(side, len(values), generator) for side in shape)
    return (left * values.to(torch.float64)) @ right.T


def dense_values(weight: Tensor) -> Tensor:
    """The oracle: float64 LAPACK on what is stored."""
    return torch.linalg.svdvals(weight.to(torch.float64))


def dense_tails(values: Tensor) -> Tensor:
    """Squared error of the best approximation at ranks 0…k, the smallest added first."""
    squares = values.to(torch.float64).square()
    return torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])


def one_to(n: int) -> Tensor:
    return torch.arange(1, n + 1, dtype=torch.float64)


def spikes_and_noise(n: int) -> Tensor:
    spikes = min(n, 12)
    return torch.cat([torch.linspace(4, 2, spikes), torch.linspace(1, 0.01, n - spikes)])


def clustered(n: int) -> Tensor:
    """Four groups of equal values, each wider than any block."""
    return torch.repeat_interleave(torch.tensor([8.0, 4.0, 2.0, 1.0]), math.ceil(n / 4))[:n]


SPECTRA: dict[str, Callable[[int], Tensor]] = {
    "i^-1/4": lambda n: one_to(n) ** -0.25,
    "i^-1/2": lambda n: one_to(n) ** -0.5,
    "i^-1": lambda n: one_to(n) ** -1,
    "i^-2": lambda n: one_to(n) ** -2,
    "exponential": lambda n: torch.exp(-one_to(n) / 6),
    "flat": torch.ones,
    "spikes and noise": spikes_and_noise,
    "one spike over a thousandth": lambda n: torch.cat([torch.ones(1), torch.full((n - 1,), 1e-3)]),
    "clustered": clustered,
    "rank 5": lambda n: torch.linspace(2, 1, min(n, 5)),
    "rank 40, all equal": lambda n: torch.ones(min(n, 40)),
    "zero": lambda n: torch.zeros(1),
}


class Streamed:
    """Row slabs, each a fresh copy as from a disk, that counts how many copies are alive at once."""

    def __init__(self, weight: Tensor, *, rows: int) -> None:
        self.weight, self.rows = weight, rows
        self.readings = 0
        self.most_alive = 0

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.weight.shape
        return rows, columns

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def slabs(self) -> Iterator[Tensor]:
        self.readings += 1
        alive: list[weakref.ref[Tensor]] = []
        for start in range(0, max(len(self.weight), 1), self.rows):
            slab = self.weight[start : start + self.rows].clone()
            alive = [ref for ref in alive if ref() is not None] + [weakref.ref(slab)]
            self.most_alive = max(self.most_alive, len(alive))
            yield slab
            del slab
