"""The distance of merged values from a claim, and the weights of the claimed update that would explain them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.adapter.adapter import Adapter
from eckart.checkpoint import Checkpoint, MatrixView
from eckart.checkpoint.matrices import stored_rows
from eckart.linalg.scaling import frobenius_norm
from eckart.linalg.slabs import as_slabs
from eckart.operations.comparison.merge_check import MergedMatrix
from eckart.operations.placement import Term
from eckart.operations.weight_update import Update, update_of

# Roundings of a product, in ulps: with a narrow dtype it is computed in float32 and rounded once or twice; with a wide
# one, products and DoRA's norms are also accumulated in that dtype.
NARROW_ROUNDINGS, WIDE_ROUNDINGS = 2.0, 8.0
Stored = tuple[Checkpoint, MatrixView]


def measured(
    name: str,
    base: Stored,
    merged: Stored,
    terms: Sequence[Term],
    *,
    adapters: Sequence[Adapter],
    weights: Sequence[float],
) -> MergedMatrix:
    """Compare one matrix of a merged checkpoint with the base's matrix plus the claimed update.

    Args:
        name: of the matrix.
        base: the checkpoint and its view of the matrix.
        merged: the same, of the merged one.
        terms: the terms of the claimed update.
        adapters: the adapters that the terms refer to.
        weights: weights of the adapters.
    """
    upcast = lambda: (old.to(torch.float64) for old, _ in _rows(base, merged))  # noqa: E731
    update = update_of(terms, adapters, weights, dtype=torch.float64, view=base[1], slabs=upcast)
    measure, start = Measure(update, len(terms)), 0
    for old, new in _rows(base, merged):
        for before, after in zip(old.split(_rows_at_once(old)), new.split(_rows_at_once(old)), strict=True):
            measure.add(before.to(torch.float64), after, start)
            start += len(before)
    return measure.result(name, base[1].shape)


def is_unchanged(base: Stored, merged: Stored) -> bool:
    """Whether a matrix has the base's values in the merged checkpoint's dtype; NaN counts as equal to NaN."""
    return all(
        torch.equal(old.to(new.dtype), new) or torch.allclose(old.to(new), new, rtol=0, atol=0, equal_nan=True)
        for old, new in _rows(base, merged)
    )


def _rows(base: Stored, merged: Stored) -> Iterator[tuple[Tensor, Tensor]]:
    """Row blocks of the base and of the merged checkpoint, as stored."""
    if not base[1].tensor_shape:
        old, new = (checkpoint.read(view.tensor).reshape(1, 1) for checkpoint, view in (base, merged))
        return iter([(old, new)])
    return zip(*(stored_rows(checkpoint, view) for checkpoint, view in (base, merged)), strict=True)


def _rows_at_once(slab: Tensor) -> int:
    """Rows of which a dozen float64 copies fill a slab or two."""
    return max(1, 2**18 // max(1, slab.shape[1]))


@dataclass
class Measure:
    """The distance of merged rows from the base's rows with an update, accumulated slab by slab.

    A merge rounds each sum to half an ulp, and the product a few times while it is computed: a sum that cancels keeps
    the rounding of its terms. Each value therefore allows an interval of weights of the update; the true weight is in
    all of them.

    Attributes:
        update: the claim.
        sums: number of terms that it adds.
    """

    update: Update
    sums: int
    equal: bool = True
    ulps: float = 0.0
    missed: float = 0.0
    update_norm: float = 0.0
    lowest: float = -math.inf
    highest: float = math.inf

    def add(self, base: Tensor, stored: Tensor, start: int) -> None:
        """Add rows from `start` on; `base` in float64, `stored` as merged."""
        update = self.update
        delta = update.change(base, start).add_(base, alpha=update.keep - 1)
        expected, merged = base + delta, stored.to(torch.float64)
        if not torch.isfinite(merged).all():
            self.equal, self.ulps, self.lowest = False, math.inf, math.inf
            return
        gained, dtype = merged - base, stored.dtype
        result = torch.maximum(expected.abs(), merged.abs())
        terms = torch.maximum(self._terms(base, start), gained.abs())
        roundings = NARROW_ROUNDINGS if dtype.itemsize < 4 else WIDE_ROUNDINGS
        allowed = _ulp(result, dtype) / 2 + roundings * _ulp(terms, dtype)
        if self.sums > 1:
            allowed += (self.sums - 1) * _ulp(base.abs() + terms, dtype) / 2
        self.equal = self.equal and torch.equal(expected.to(dtype), stored)
        ulp = _ulp(torch.maximum(torch.maximum(result, base.abs()), terms), dtype)
        self.ulps = max(self.ulps, float(((merged - expected).abs() / ulp).amax()))
        self.missed = math.hypot(self.missed, frobenius_norm(as_slabs(gained - delta)))
        self.update_norm = math.hypot(self.update_norm, frobenius_norm(as_slabs(delta)))
        changes = delta != 0
        if bool((gained.abs() > allowed)[~changes].any()):
            self.lowest = math.inf
        if bool(changes.any()):
            middle, width = gained[changes] / delta[changes], allowed[changes] / delta[changes].abs()
            bounded = width.isfinite()  # next to a far larger value an update shows no weight
            if bool(bounded.any()):
                self.lowest = max(self.lowest, float((middle - width)[bounded].amax()))
                self.highest = min(self.highest, float((middle + width)[bounded].amin()))

    def _terms(self, base: Tensor, start: int) -> Tensor:
        """Sum of the absolute values of the terms of each value of the update."""
        stop, size = start + len(base), torch.zeros_like(base)
        if self.update.products is not None:
            left, right = self.update.products
            size += left[start:stop].abs() @ right.abs()
        for factor, whole in self.update.whole:
            size += abs(factor) * whole[start:stop].to(torch.float64).abs()
        for layer in self.update.dora:
            gains = layer.gains if layer.by_column else layer.gains[start:stop, None]
            size += (base.abs() + layer.left[start:stop].abs() @ layer.right.abs()) * gains.abs()
        return size

    def result(self, name: str, shape: tuple[int, int]) -> MergedMatrix:
        """The measures of all rows."""
        error = self.missed / self.update_norm if self.update_norm > 0 else None
        return MergedMatrix(name, shape, self.equal, self.ulps, error, self.lowest, self.highest)


def _ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance between neighbouring numbers of a dtype at the magnitude of each value."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(values.clamp_min(info.tiny)).exponent
    return torch.ldexp(torch.full_like(values, info.eps), exponent - 1)
