"""The truth that both sides are judged by: singular values from float64 LAPACK, computed once and kept."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def spectra(matrices: Mapping[str, Callable[[], Tensor]], cache: Path) -> dict[str, Tensor]:
    """All singular values of each matrix, descending, in float64."""
    kept: dict[str, np.ndarray] = {}
    if cache.exists():
        with np.load(cache) as file:
            kept = dict(file)
    missing = matrices.keys() - kept.keys()
    if missing:
        kept |= {name: torch.linalg.svdvals(matrices[name]().double()).numpy() for name in sorted(missing)}
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(cache, **kept)
    return {name: torch.from_numpy(kept[name]) for name in matrices}


def squared_tail(singular_values: Tensor, rank: int) -> float:
    """The squared error of the best approximation of a rank (Eckart–Young)."""
    return float(singular_values[rank:].square().sum())
