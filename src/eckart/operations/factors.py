"""One matrix's low-rank factors from its difference, with the error they were measured to have."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eckart.adapter.adapter import AdapterLayer
from eckart.checkpoint import MatrixView
from eckart.engine import Record
from eckart.errors import OptionError
from eckart.linalg import RankBound, RowSlabs, Spectrum, spectrum_for, truncated_svd
from eckart.linalg.krylov import resident
from eckart.operations.rank_choice import RankChoice

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class FactorOptions:
    """How factors are written.

    Attributes:
        dtype: of both factors.
        balanced: split √S to both factors; otherwise lora_B carries S and lora_A has orthonormal rows.
    """

    dtype: torch.dtype = torch.float32
    balanced: bool = True

    @classmethod
    def named(cls, dtype: str, *, balanced: bool = True) -> "FactorOptions":
        """Options with the dtype by its name.

        Raises:
            OptionError: factors are not written in that dtype.
        """
        if dtype not in _DTYPES:
            msg = f"--dtype {dtype}: expected {', '.join(_DTYPES)}"
            raise OptionError(msg)
        return cls(_DTYPES[dtype], balanced)


def factor(matrix: RowSlabs, choice: RankChoice, options: FactorOptions, generator: torch.Generator) -> Record:
    """The best factors of a difference in its stored orientation, or a record that says it is zero.

    Returns:
        A record with tensors `left` (rows, rank) and `right` (rank, columns), and the facts `rank`, `error`,
        `error_lower_bound` and `fro_norm`; of a zero matrix only `{"fro_norm": 0.0}`.
    """
    matrix = resident(matrix)
    if not any(bool(slab.any()) for slab in matrix.slabs()):
        return Record({"fro_norm": 0.0})
    rank = _chosen_rank(matrix, choice, generator)
    svd = truncated_svd(matrix, rank=rank, generator=generator)
    root = svd.S.sqrt() if options.balanced else svd.S
    left = (svd.U * root.to(svd.U)).to(options.dtype)
    right = (svd.Vh * root[:, None].to(svd.Vh) if options.balanced else svd.Vh).to(options.dtype)
    norm = svd.spectrum.fro_norm
    facts: dict[str, Any] = {
        "rank": rank,
        "fro_norm": norm,
        "error": _measured_error(matrix, left, right) / norm,
        "error_lower_bound": float(svd.spectrum.energy_above[0][rank]) ** 0.5 / norm,
    }
    return Record(facts, {"left": left.cpu(), "right": right.cpu()})


def layer_of(view: MatrixView, left: Tensor, right: Tensor, *, bias: Tensor | None = None) -> AdapterLayer:
    """The adapter layer of a matrix from factors in its stored orientation; alpha = rank, so its scale is one.

    Args:
        view: what the matrix is.
        left: shape `(rows, rank)`.
        right: shape `(rank, columns)`.
        bias: what the module's bias gains, shape `(out_features,)`.
    """
    rank = len(right)
    if view.kind == "embedding":
        return AdapterLayer(left.T.contiguous(), right.T.contiguous(), rank, kind="embedding")
    if view.kind == "conv":
        A = right.reshape(rank, *view.tensor_shape[1:])
        B = left.reshape(*left.shape, *(1 for _ in view.tensor_shape[2:]))
        return AdapterLayer(A, B, rank, kind="conv", bias=bias)
    if view.transposed:
        return AdapterLayer(left.T.contiguous(), right.T.contiguous(), rank, kind="conv1d", bias=bias)
    return AdapterLayer(right, left, rank, bias=bias)


def error_of(matrix: RowSlabs, layer: AdapterLayer, view: MatrixView) -> float:
    """‖W − s·B·A‖_F of a layer of a difference in its stored orientation."""
    product = layer.low_rank()
    if view.transposed:
        return _measured_error(matrix, product.lora_A.T, product.lora_B.T)
    return _measured_error(matrix, product.lora_B, product.lora_A)


def _chosen_rank(matrix: RowSlabs, choice: RankChoice, generator: torch.Generator) -> int:
    """The rank that a choice means for one matrix that is not zero."""
    if choice.rank is not None:
        return min(choice.rank, *matrix.shape)

    def rule(known: Spectrum) -> int | RankBound | None:
        if choice.energy is not None:
            return known.rank_for_energy(choice.energy)
        return known.rank_for_error(choice.error or 1.0)

    found = rule(spectrum_for(matrix, rule, generator=generator))
    return max(1, found.upper if isinstance(found, RankBound) else found or 1)


def _measured_error(matrix: RowSlabs, left: Tensor, right: Tensor) -> float:
    """‖W − left·right‖_F of the factors as they are, in float32 products and float64 sums."""
    total, start = 0.0, 0
    for slab in matrix.slabs():
        for part in slab.split(max(1, 2**20 // slab.shape[1])):
            rows = left[start : start + len(part)].to(part)
            residual = torch.addmm(part, rows, right.to(part), alpha=-1).to(torch.float64).flatten()
            total += float(residual @ residual)
            start += len(part)
    return total**0.5
