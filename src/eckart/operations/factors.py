"""One matrix's low-rank factors from its difference, with their measured error."""

import math
from typing import Any

import torch
from torch import Tensor

from eckart.adapter.adapter import AdapterLayer
from eckart.checkpoint import MatrixView
from eckart.engine import Record
from eckart.linalg import (
    LowRank,
    RowSlabs,
    difference_noise,
    partial_spectrum,
    spectrum,
    spectrum_for,
    truncated_svd,
    zero_fraction,
)
from eckart.linalg.krylov import resident
from eckart.linalg.noise import DEAD_ZONE
from eckart.linalg.rank import FULL_SPECTRUM_SIDE
from eckart.linalg.scaling import frobenius_norm, normalized, shifted, shifted_number
from eckart.linalg.slabs import as_slabs
from eckart.operations.rank_choice import RankChoice
from eckart.operations.ranks import PARTIAL_RANK, rank_by_rule, rule_of


def factor(
    matrix: RowSlabs,
    choice: RankChoice,
    generator: torch.Generator,
    *,
    dtype: torch.dtype,
    balanced: bool = True,
    stored: RowSlabs | None = None,
) -> Record:
    """The best factors of a difference in its stored orientation, or a record without tensors if it is zero.

    Args:
        matrix: shape `(rows, columns)`.
        choice: by rank, energy, error or noise.
        generator: source of randomness.
        dtype: of both factors.
        balanced: split √S to both factors; otherwise `left` carries S and `right` has orthonormal rows.
        stored: the weight whose rounding is in the difference; None if that is unknown.

    Returns:
        A record with tensors `left` (rows, rank) and `right` (rank, columns), and the facts `error`,
        `error_lower_bound` and `fro_norm`; for a zero matrix, or one of nothing but noise, only `fro_norm`.
    """
    matrix = resident(matrix)
    if not any(bool(rows.any()) for slab in matrix.slabs() for rows in slab.split(64)):  # most end with the first
        return Record({"fro_norm": 0.0})
    rank = _rank_for(matrix, choice, generator, stored)
    if rank == 0:
        return Record({"fro_norm": frobenius_norm(matrix)})
    svd = truncated_svd(matrix, rank=rank, generator=generator)
    root = svd.S.sqrt() if balanced else svd.S
    left = (svd.U * root.to(svd.U)).to(dtype)
    right = (svd.Vh * root[:, None].to(svd.Vh) if balanced else svd.Vh).to(dtype)
    norm = svd.spectrum.fro_norm
    facts: dict[str, Any] = {
        "fro_norm": norm,
        "error": _measured_error(matrix, left, right, norm),
        "error_lower_bound": svd.spectrum.error_bounds(rank)[0],
        "lower_bounds": [svd.spectrum.error_bounds(lower)[0] for lower in range(1, rank + 1)],
    }
    if choice.noise:
        facts["signal_rank"] = rank
    elif stored is not None and zero_fraction(matrix) < DEAD_ZONE:  # beyond it, the edge takes longer than the factors
        facts["signal_rank"] = min(
            rank, difference_noise(matrix, svd.spectrum, stored, generator=generator).signal_rank
        )
    return Record(facts, {"left": left.cpu(), "right": right.cpu()})


def layer_of(view: MatrixView, left: Tensor, right: Tensor, *, bias: Tensor | None = None) -> AdapterLayer:
    """The adapter layer of a matrix from factors in its stored orientation; alpha = rank, so its scale is one.

    Args:
        view: the matrix.
        left: shape `(rows, rank)`.
        right: shape `(rank, columns)`.
        bias: change of the module's bias, shape `(out_features,)`.
    """
    rank = len(right)
    if view.kind == "embedding":
        return AdapterLayer(left.T.contiguous(), right.T.contiguous(), rank, kind="embedding")
    if view.kind == "conv":
        A = right.reshape(rank, *view.tensor_shape[1:])
        B = left.reshape(*left.shape, *(1 for _ in view.tensor_shape[2:]))
        return AdapterLayer(A, B, rank, kind="conv", bias=bias)
    kind = "conv1d" if view.kind == "conv1d" else "expert" if view.kind in ("expert", "parameter") else "linear"
    A, B = (left.T.contiguous(), right.T.contiguous()) if view.swaps_factors else (right, left)
    return AdapterLayer(A, B, rank, kind=kind, bias=bias)


def error_of(matrix: RowSlabs, layer: AdapterLayer, view: MatrixView, *, norm: float) -> float:
    """‖W − s·B·A‖_F / ‖W‖_F of a layer against a difference of that norm, in its stored orientation."""
    product = layer.low_rank()
    if view.swaps_factors:
        return _measured_error(matrix, product.lora_A.T, product.lora_B.T, norm)
    return _measured_error(matrix, product.lora_B, product.lora_A, norm)


def error_of_product(update: Tensor, product: LowRank, *, norm: float) -> float:
    """‖W − B·A‖_F / ‖W‖_F of a product against a matrix in memory, of that norm; 0 for a zero matrix."""
    return _measured_error(as_slabs(update), product.lora_B, product.lora_A, norm) if norm else 0.0


def _rank_for(matrix: RowSlabs, choice: RankChoice, generator: torch.Generator, stored: RowSlabs | None) -> int:
    """The rank of a nonzero matrix by a rank choice; 0 only by noise."""
    if choice.noise and stored is not None:
        complete = min(matrix.shape) <= FULL_SPECTRUM_SIDE
        known = spectrum(matrix) if complete else partial_spectrum(matrix, rank=PARTIAL_RANK, generator=generator)
        return difference_noise(matrix, known, stored, generator=generator).signal_rank
    if choice.rank is not None:
        return min(choice.rank, *matrix.shape)
    return max(1, rank_by_rule(spectrum_for(matrix, rule_of(choice), generator=generator), choice))


def _measured_error(matrix: RowSlabs, left: Tensor, right: Tensor, norm: float) -> float:
    """‖W − left·right‖_F / ‖W‖_F of the factors as stored, with float32 products and float64 sums."""
    scaled, exponent = normalized(matrix, norm)
    if exponent:  # in float64, because products of factors near the limits of their dtype have no room there
        left, right = shifted(left.to(torch.float64), -exponent), right.to(torch.float64)
    total, start = 0.0, 0
    for slab in scaled.slabs():
        for part in slab.split(max(1, 2**20 // slab.shape[1])):
            block = part.to(torch.float64) if exponent else part
            rows = left[start : start + len(block)].to(block)
            residual = torch.addmm(block, rows, right.to(block), alpha=-1).to(torch.float64).flatten()
            total += float(residual @ residual)
            start += len(block)
    return math.sqrt(total) / shifted_number(norm, -exponent)
