"""How far merged values are from a claim, and which weights of the claimed update would explain them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.operations.comparison.merge_check import MergedMatrix
from eckart.operations.weight_update import Update

# Roundings of a product, in units of its last place: a narrow dtype's are made in float32 and rounded to it once or
# twice; a wide dtype is also what products, and DoRA's norms, are summed up in.
NARROW_ROUNDINGS, WIDE_ROUNDINGS = 2.0, 8.0


@dataclass
class Measure:
    """How far merged rows are from what an update makes of the base's, gathered slab by slab.

    A merge rounds each sum to half a unit in its last place, and rounds the product a few times while it is made: a
    sum that cancels keeps the rounding of its terms. Each value so allows an interval of weights of the update; the
    true one lies in all of them.

    Attributes:
        update: the claim.
        sums: adapters that it adds up.
    """

    update: Update
    sums: int
    equal: bool = True
    ulps: float = 0.0
    missed: float = 0.0
    energy: float = 0.0
    lowest: float = -math.inf
    highest: float = math.inf

    def take(self, base: Tensor, stored: Tensor, start: int) -> None:
        """Measure rows from `start` on; `base` in float64, `stored` as merged."""
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
        self.missed += float((gained - delta).square().sum())
        self.energy += float(delta.square().sum())
        changes = delta != 0
        if bool((gained.abs() > allowed)[~changes].any()):
            self.lowest = math.inf
        if bool(changes.any()):
            middle, width = gained[changes] / delta[changes], allowed[changes] / delta[changes].abs()
            self.lowest = max(self.lowest, float((middle - width).amax()))
            self.highest = min(self.highest, float((middle + width).amin()))

    def _terms(self, base: Tensor, start: int) -> Tensor:
        """The size of what is summed up in each value of the update."""
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
        """What was gathered."""
        error = math.sqrt(self.missed / self.energy) if self.energy > 0 else None
        return MergedMatrix(name, shape, self.equal, self.ulps, error, self.lowest, self.highest)


def _ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance of neighbouring numbers of a dtype at the size of each value."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(values.clamp_min(info.tiny)).exponent
    return torch.ldexp(torch.full_like(values, info.eps), exponent - 1)
