"""The change of one matrix by adapters, computed rows at a time: base + Σ wᵢ·Δᵢ, in one dtype, not rounded here.

A plain layer has Δ = scaling·BA; DoRA has Δ = m⊙(W+ΔW)/‖W+ΔW‖ − W with one norm per output (Liu et al. 2024) or, in
LyCORIS, per input; a completely saved tensor has Δ = saved − W, and an added one is Δ. Those of DoRA and of saved
tensors subtract their share of the base; `keep` is the remaining one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.checkpoint import MatrixView
from eckart.formats.peft_tokens import tokens_of
from eckart.linalg import LowRank
from eckart.linalg.finite import require_finite
from eckart.linalg.scaling import SAFE_SQUARES
from eckart.operations.placement import Term
from eckart.operations.stored_factors import outputs_are_columns, stored_factors

Slabs = Callable[[], Iterator[Tensor]]


@dataclass
class _Dora:
    """W' of one DoRA layer.

    Attributes:
        weight: weight of the adapter.
        left, right: factors of the update, including the scale.
        saved: the weight that the adapter saves and updates, as PEFT does with embeddings; None for that of the base.
        by_column: whether a column is normalized rather than a row.
        kernel: number of adjacent columns that are normalized together: those of an input of a convolution.
        gains: factor of each row or column.
    """

    weight: float
    left: Tensor
    right: Tensor
    saved: Tensor | None
    by_column: bool
    kernel: int = 1
    gains: Tensor = field(default_factory=lambda: torch.ones(()))

    def moved(self, slab: Tensor, start: int) -> Tensor:
        """W + ΔW of some rows."""
        stop = start + len(slab)
        base = slab if self.saved is None else self.saved[start:stop].to(slab.dtype)
        return (self.left[start:stop] @ self.right).add_(base)

    def rows(self, slab: Tensor, start: int) -> Tensor:
        """W' of some rows."""
        gains = self.gains if self.by_column else self.gains[start : start + len(slab), None]
        return self.moved(slab, start).mul_(gains)


@dataclass
class Update:
    """A change of one matrix, or of another tensor as a matrix of `(length, values per entry)`.

    Attributes:
        dtype: to compute in.
        keep: remaining share of the base.
        products: factors of all plain updates, including scales and weights; None without any.
        whole: tensors to add, each with its factor.
        dora: layers that renormalize.
        rows: factor, indices and new values of single rows.
        scales: alpha and rank of each plain update and DoRA layer, for messages.
    """

    dtype: torch.dtype
    keep: float = 1.0
    products: tuple[Tensor, Tensor] | None = None
    whole: list[tuple[float, Tensor]] = field(default_factory=list)
    dora: list[_Dora] = field(default_factory=list)
    rows: list[tuple[float, Tensor, Tensor]] = field(default_factory=list)
    scales: list[str] = field(default_factory=list)

    def change(self, slab: Tensor, start: int) -> Tensor:
        """The change of rows of the base, from row `start` on.

        Args:
            slab: shape `(rows, columns)`, in the dtype to compute in; not modified.
            start: index of the first row.

        Returns:
            a new tensor, safe to modify.
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
        for weight, indices, values in self.rows:
            inside = (start <= indices) & (indices < stop)
            here = indices[inside] - start
            total[here] += weight * (values[inside].to(slab.dtype) - slab[here])
        return total

    def apply(self, slab: Tensor, start: int) -> Tensor:
        """The changed rows; arguments as of `change`."""
        # The base is added last: a product accumulated onto the base would round at every step.
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
    """Read the change of one matrix, upcast once.

    Args:
        terms: the terms that change it.
        adapters: adapters that the terms refer to.
        weights: weights of the adapters.
        dtype: data type to compute in.
        view: the matrix.
        slabs: rows of the base, for the norms of DoRA.

    Raises:
        NotFiniteError: a tensor of an adapter contains NaN or Inf.
    """
    result, lefts, rights = Update(dtype), [], []
    saved = {term.adapter: _saved(adapters[term.adapter], term.key) for term in terms if term.part == "whole"}
    for term in terms:
        if term.part == "whole":
            continue
        if term.part == "added":
            difference = adapters[term.adapter].added[term.key].detach().cpu()
            require_finite(difference, f"the adapter's {term.key}")
            columns = view.stored_shape[1]
            result.whole.append((weights[term.adapter], difference.reshape(-1, columns)))
            continue
        if term.part == "rows":
            adapter, values = adapters[term.adapter], _saved(adapters[term.adapter], term.key)
            indices = torch.tensor(tokens_of(term.key, adapter.config, values))
            result.rows.append((weights[term.adapter], indices, values))
            continue
        weight, layer = weights[term.adapter], _checked(adapters[term.adapter], term.key)
        result.scales.append(f"{term.key} has alpha {layer.alpha:.4g} at rank {layer.rank}, weight {weight:.4g}")
        if term.part == "bias" and layer.bias is not None:
            result.whole.append((1.0, (layer.bias.to(torch.float64) * (weight * layer.scaling))[:, None]))
            continue
        product = LowRank(*(factor.to(dtype) for factor in stored_factors(layer, view)))
        if layer.magnitude is None:
            product *= weight * layer.scaling
            lefts.append(product.lora_B)
            rights.append(product.lora_A)
        else:
            replaced, product = saved.pop(term.adapter, None), product * layer.scaling
            is_by_input = layer.magnitude.ndim > 1
            by_column = outputs_are_columns(layer, view) != is_by_input
            kernel = math.prod(layer.lora_A.shape[2:]) if is_by_input else 1
            dora = _Dora(weight, product.lora_B, product.lora_A, replaced, by_column, kernel)
            magnitude = layer.magnitude.flatten().repeat_interleave(kernel)
            dora.gains = (magnitude.to(torch.float64) / _norms(dora, slabs)).to(dtype)
            result.dora.append(dora)
            result.keep -= weight
    for number, tensor in saved.items():
        result.whole.append((weights[number], tensor))
        result.keep -= weights[number]
    if lefts:
        result.products = torch.cat(lefts, dim=1), torch.cat(rights)
    return result


def _saved(adapter: Adapter, name: str) -> Tensor:
    """A tensor that an adapter saves completely, as a matrix of its entries."""
    tensor = adapter.modules_to_save[name].detach().cpu()
    require_finite(tensor, f"the adapter's {name}")
    return tensor.reshape(len(tensor) if tensor.ndim else 1, -1)


def _checked(adapter: Adapter, module: str) -> AdapterLayer:
    """A layer in main memory, checked to be finite."""
    layer = adapter[module]
    tensors = {part: tensor.detach().cpu() for part, tensor in layer.tensors().items()}
    for part, tensor in tensors.items():
        require_finite(tensor, f"the adapter's {module}.{part}")
    return replace(layer, **tensors)


def _norms(dora: _Dora, slabs: Slabs) -> Tensor:
    """‖W + ΔW‖ of each row or column, in float64, from one pass over the base."""
    norms = torch.zeros(dora.right.shape[1] if dora.by_column else dora.left.shape[0], dtype=torch.float64)
    start = 0
    for slab in slabs():
        part = _lengths(dora.moved(slab, start), dim=0 if dora.by_column else 1)
        if dora.by_column:
            norms = torch.hypot(norms, part)
        else:
            norms[start : start + len(slab)] = part
        start += len(slab)
    if dora.kernel == 1:
        return norms
    return _lengths(norms.reshape(-1, dora.kernel), dim=1).repeat_interleave(dora.kernel)


def _lengths(rows: Tensor, *, dim: int) -> Tensor:
    """Norms along a dimension in float64, also where the squares of float64 values have no room there."""
    norms = torch.linalg.vector_norm(rows, dim=dim, dtype=torch.float64)
    least, most = map(math.sqrt, SAFE_SQUARES)
    if rows.dtype != torch.float64 or bool(((least < norms) & (norms < most)).all()):
        return norms
    largest = rows.abs().amax(dim, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.linalg.vector_norm(rows / largest, dim=dim) * largest.squeeze(dim)
