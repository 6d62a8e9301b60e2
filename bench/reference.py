"""The reference that both sides are judged by: singular values from float64 LAPACK, computed once and cached."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor


def spectra(matrices: Mapping[str, Callable[[], Tensor]], cache: Path) -> dict[str, Tensor]:
    """All singular values of each matrix, descending, in float64."""
    cached: dict[str, Tensor] = torch.load(cache, weights_only=True) if cache.exists() else {}
    missing = matrices.keys() - cached.keys()
    if missing:
        cached |= {name: torch.linalg.svdvals(matrices[name]().double()) for name in sorted(missing)}
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save(cached, cache)
    return {name: cached[name] for name in matrices}


def squared_tail(singular_values: Tensor, rank: int) -> float:
    """Squared error of the best approximation of a rank (Eckart–Young)."""
    return float(singular_values[rank:].square().sum())
