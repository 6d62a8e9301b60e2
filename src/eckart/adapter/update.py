"""What adapters make of one matrix, computed rows at a time: base + Σ wᵢ·Δᵢ, in one dtype, rounded by nobody here.

Of a plain layer Δ = scaling·BA. Of DoRA Δ = m⊙(W+ΔW)/‖W+ΔW‖ − W, a norm for each output (Liu et al. 2024). Of a tensor
saved whole Δ = saved − W. The last two take their share of the base away: what is left of it is `keep`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.adapter.places import Term, outputs_are_columns, stored_factors
from eckart.checkpoint import MatrixView
from eckart.errors import NotFiniteError

Slabs = Callable[[], Iterator[Tensor]]


@dataclass
class _Dora:
    """W' of one DoRA layer: the factors of its update with the scale in them, and what each output is multiplied by."""

    weight: float
    left: Tensor
    right: Tensor
    gains: Tensor
    by_column: bool

    def rows(self, slab: Tensor, start: int) -> Tensor:
        """W' of some rows."""
        stop = start + len(slab)
        moved = (self.left[start:stop] @ self.right).add_(slab)
        return moved.mul_(self.gains if self.by_column else self.gains[start:stop, None])


@dataclass
class Update:
    """A change of one matrix, or of a tensor that is none, seen as a matrix of `(len, values an entry)`.

    Attributes:
        dtype: to compute in.
        keep: share of the base that stays.
        products: factors of all plain updates, scales and weights in them; None without any.
        whole: tensors to add, each with its factor.
        dora: layers that renormalise.
    """

    dtype: torch.dtype
    keep: float = 1.0
    products: tuple[Tensor, Tensor] | None = None
    whole: list[tuple[float, Tensor]] = field(default_factory=list)
    dora: list[_Dora] = field(default_factory=list)

    def change(self, slab: Tensor, start: int) -> Tensor:
        """What is added to rows of the base, from row `start` on.

        Args:
            slab: shape `(rows, columns)`, in the dtype to compute in; not changed.
            start: first of the rows.

        Returns:
            a tensor that belongs to nobody.
        """
        stop = start + len(slab)
        if self.products is None:
            total = torch.zeros_like(slab)
        else:
            left, right = self.products
            total = left[start:stop] @ right
        for factor, tensor in self.whole:
            total.add_(tensor[start:stop].to(slab.dtype), alpha=factor)
        for layer in self.dora:
            total.add_(layer.rows(slab, start), alpha=layer.weight)
        return total

    def apply(self, slab: Tensor, start: int) -> Tensor:
        """The changed rows; arguments as of `change`."""
        total = self.change(slab, start)
        if self.keep == 1:
            return total.add_(slab)
        return total.add_(slab, alpha=self.keep) if self.keep else total


def update_of(
    terms: Sequence[Term],
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    *,
    dtype: torch.dtype,
    view: MatrixView,
    slabs: Slabs,
) -> Update:
    """Read what changes one matrix, upcast once.

    Args:
        terms: what changes it.
        adapters: that they name.
        weights: of the adapters.
        dtype: to compute in.
        view: the matrix.
        slabs: rows of the base, for the norms of DoRA.

    Raises:
        NotFiniteError: a tensor of an adapter holds NaN or Inf.
    """
    result, lefts, rights = Update(dtype), [], []
    for term in terms:
        weight, adapter = weights[term.adapter], adapters[term.adapter]
        if term.part == "whole":
            saved = adapter.modules_to_save[term.key].detach().cpu()
            check_finite(term.key, saved)
            result.whole.append((weight, saved.reshape(len(saved) if saved.ndim else 1, -1)))
            result.keep -= weight
            continue
        layer = adapter[term.key]
        tensors = {part: tensor.detach().cpu() for part, tensor in layer.tensors().items()}
        for part, tensor in tensors.items():
            check_finite(f"{term.key}.{part}", tensor)
        layer = replace(layer, **tensors)
        if term.part == "bias" and layer.bias is not None:
            result.whole.append((weight * layer.scaling, layer.bias[:, None]))
            continue
        left, right = (factor.to(dtype) for factor in stored_factors(layer, view))
        if layer.magnitude is None:
            lefts.append(left * (weight * layer.scaling))
            rights.append(right)
        else:
            result.dora.append(_dora(layer, view, weight, (left * layer.scaling, right), slabs))
            result.keep -= weight
    if lefts:
        result.products = torch.cat(lefts, dim=1), torch.cat(rights)
    return result


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise NotFiniteError if a tensor of an adapter holds NaN or Inf."""
    # NaN and Inf survive a sum, which is one pass without a mask; a sum that overflowed proves nothing.
    if not torch.isfinite(tensor.sum(dtype=torch.float32)) and (bad := int((~torch.isfinite(tensor)).sum())):
        msg = f"the adapter's {name} holds {bad:,} values that are NaN or Inf"
        raise NotFiniteError(msg)


def _dora(layer: AdapterLayer, view: MatrixView, weight: float, factors: tuple[Tensor, Tensor], slabs: Slabs) -> _Dora:
    """A DoRA layer, with the norms of W + ΔW from one pass over the base."""
    left, right = factors
    by_column, start = outputs_are_columns(layer, view), 0
    squares = torch.zeros(right.shape[1] if by_column else left.shape[0], dtype=torch.float64)
    for slab in slabs():
        stop = start + len(slab)
        moved = (left[start:stop] @ right).add_(slab)
        if by_column:
            squares += torch.linalg.vector_norm(moved, dim=0, dtype=torch.float64).square_()
        else:
            squares[start:stop] = torch.linalg.vector_norm(moved, dim=1, dtype=torch.float64).square_()
        start = stop
    assert layer.magnitude is not None
    gains = layer.magnitude.to(torch.float64).flatten() / squares.sqrt_()
    return _Dora(weight, left, right, gains.to(left.dtype), by_column)
