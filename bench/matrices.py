"""Matrices with a prescribed spectrum, in random orthogonal bases, built once and cached."""

from pathlib import Path

import torch
from torch import Tensor

SIZE = 4096
SPECTRA = ("1/√i", "1/i", "64 spikes and noise")
_FILES = dict(zip(SPECTRA, ("inverse-root", "inverse", "spikes"), strict=True))


def planted(spectrum: str, work: Path) -> Tensor:
    """A float32 `(SIZE, SIZE)` matrix with one of the `SPECTRA`."""
    path = work / f"planted-{_FILES[spectrum]}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_build(spectrum, torch.Generator().manual_seed(0)), path)
    return torch.load(path, weights_only=True)


def _build(spectrum: str, generator: torch.Generator) -> Tensor:
    index = torch.arange(1, SIZE + 1, dtype=torch.float32)
    if spectrum == "1/√i":
        return _rotated(index.rsqrt(), generator)
    if spectrum == "1/i":
        return _rotated(index.reciprocal(), generator)
    # The spectrum of unit-variance noise ends at 2·√SIZE; the spikes are at 3 to 1.25 times that edge.
    edge = 2 * SIZE**0.5
    spikes = torch.linspace(3.0, 1.25, 64) * edge
    return _rotated(spikes, generator) + torch.randn(SIZE, SIZE, generator=generator)


def _rotated(singular_values: Tensor, generator: torch.Generator) -> Tensor:
    """`U diag(s) Vᵀ` with random orthonormal U and V."""
    U, V = (torch.linalg.qr(torch.randn(SIZE, len(singular_values), generator=generator)).Q for _ in range(2))
    return (U * singular_values) @ V.T
