"""Merging adapters into the base weights of a live model, and undoing it bit for bit.

Subtracting what was added to a rounded sum does not restore the original. So the error of the subtraction is stored:
the distance of the bit patterns, one byte per entry, and the entries themselves if a byte is not enough.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from eckart.errors import MismatchError, NotFiniteError
from eckart.nn.adapted import AdaptedModule
from eckart.nn.factors import LoRAFactors
from eckart.nn.frozen import PackedLinear
from eckart.nn.injection import adapted_modules
from eckart.nn.row_norm import row_norms, squared_row_norms

_SLAB_ENTRIES = 2**20  # worked on at a time, in float64
_Error = tuple[Tensor | None, Tensor, Tensor]  # distances of bit patterns, places of entries too far off, and these
_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def merge_weights(model: nn.Module) -> list[str]:
    """Merge the adapters that are switched on into the base weights, in place, so that only the base computes.

    The sum is computed in float64 and rounded once to the base's dtype. Tied weights are separated: only the adapted
    module changes. Additional memory: about one byte per entry of the merged weights.

    Returns:
        Paths of the modules whose weight changed.

    Raises:
        MismatchError: base weights are in four bits; nothing is merged.
        NotFiniteError: a merged weight overflows its dtype; nothing is merged.
    """
    modules = {path: m for path, m in adapted_modules(model).items() if not m.merged and any(m.switched_on())}
    if packed := [path for path, module in modules.items() if isinstance(module.base_layer, PackedLinear)]:
        msg = "weights in four bits cannot be merged in place; eckart.merge writes a merged model"
        raise MismatchError.listing(msg, packed)
    merged: list[str] = []
    for path, module in modules.items():
        is_finite = _merge(model, module)
        merged.append(path)
        if not is_finite:
            for done in merged:
                _unmerge(done, modules[done])
            msg = f"{path}: the merged weight is not finite in {module.weight.dtype}; nothing was merged"
            raise NotFiniteError(msg)
    return merged


def unmerge_weights(model: nn.Module) -> list[str]:
    """Undo `merge_weights`: every base weight gets its original bits.

    Returns:
        Paths of the modules whose weight changed.

    Raises:
        MismatchError: factors changed after the merge, so that a weight cannot be restored; it stays merged.
    """
    modules = {path: module for path, module in adapted_modules(model).items() if module.merged}
    for path, module in modules.items():
        _unmerge(path, module)
    return list(modules)


@dataclass
class _Undo:
    """What restores one base weight.

    Attributes:
        scales: DoRA's scale of the rows for each merged adapter, float64; ones for plain LoRA.
        slabs: the errors of undoing the merge, in the order of the rows.
        checksum: checksum of the bit patterns of the original weight.
        weight: the original parameter if other modules share it; the merged one is then a copy.
        bias: the original bias.
    """

    scales: list[Tensor]
    slabs: list[_Error]
    checksum: int
    weight: nn.Parameter | None
    bias: nn.Parameter | None


@torch.no_grad()
def _merge(model: nn.Module, module: AdaptedModule) -> bool:
    """Merge one module; whether its weight is finite."""
    base = module.base_layer
    original = cast("nn.Parameter", base.weight)
    is_shared = sum(weight is original for _, weight in model.named_parameters(remove_duplicate=False)) > 1
    if is_shared:
        base.weight = nn.Parameter(original.detach().clone(), requires_grad=False)
    rows = module.rows()
    scales = [_scale(rows, factors) for factors, _ in module.switched_on()]
    undo = _Undo(scales, [], _checksum(rows), original if is_shared else None, cast("nn.Parameter | None", module.bias))
    is_finite = True
    for weight, (gain, shift) in zip(_split(rows), _changes(module, scales), strict=True):
        new = (weight.double() * gain + shift).to(weight.dtype)
        is_finite &= bool(torch.isfinite(new).all())
        undo.slabs.append(_error(weight, ((new.double() - shift) / gain).to(weight.dtype)))
        weight.copy_(new)
    _merge_biases(module)
    module.merged, module.undo = True, undo
    return is_finite


def _scale(rows: Tensor, factors: LoRAFactors) -> Tensor:
    """DoRA's scale of the rows, in float64 (the forward pass uses the weight's dtype); ones for plain LoRA."""
    if factors.magnitude is None:
        return torch.ones(len(rows), dtype=torch.float64, device=rows.device)
    A, B = (factor.double().flatten(1) for factor in factors.stacked())
    norms, start = [], 0
    for slab in _split(rows):
        wide = slab.double()
        part = B[start : start + len(slab)]
        norms.append(row_norms(wide, squared_row_norms(wide), A, part, factors.scaling))
        start += len(slab)
    return factors.magnitude.double() / torch.cat(norms)


@torch.no_grad()
def _unmerge(path: str, module: AdaptedModule) -> None:
    undo = cast("_Undo", module.undo)
    restored = module.weight.detach().clone()
    rows = module.as_rows(restored)
    for weight, (gain, shift), error in zip(_split(rows), _changes(module, undo.scales), undo.slabs, strict=True):
        distances, places, entries = error
        bits = _bits(((weight.double() - shift) / gain).to(weight.dtype))
        if distances is not None:
            bits = bits + distances
        values = bits.view(weight.dtype)
        values.view(-1)[places] = entries
        weight.copy_(values)
    if _checksum(rows) != undo.checksum:
        msg = f"{path}: the adapters were changed since they were merged, so the base cannot be restored"
        raise MismatchError(msg)
    if undo.weight is None:
        module.weight.data.copy_(restored)
    else:
        module.base_layer.weight = undo.weight
    if module.bias is not undo.bias:
        module.base_layer.bias = undo.bias  # type: ignore[assignment]
    module.merged, module.undo = False, None


def _changes(module: AdaptedModule, scales: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The merged rows of each slab as gain ⊙ W + shift, in float64: W + Σ w·(c ⊙ (W + s·B·A) − W)."""
    start = 0
    for rows in _split(module.rows()):
        stop = start + len(rows)
        gain = torch.ones(len(rows), 1, dtype=torch.float64, device=rows.device)
        shift = torch.zeros(rows.shape, dtype=torch.float64, device=rows.device)
        for (factors, weight), scale in zip(module.switched_on(), scales, strict=True):
            A, B = (factor.detach().double().flatten(1) for factor in factors.stacked())
            share = scale[start:stop, None]
            gain += weight * (share - 1)
            shift.addmm_(B[start:stop] * share, A, alpha=weight * factors.scaling)
        yield gain, shift
        start = stop


def _merge_biases(module: AdaptedModule) -> None:
    """Add the adapters' biases to the base's bias, which is created if missing."""
    added = [f.lora_bias.double() * (f.scaling * w) for f, w in module.switched_on() if f.lora_bias is not None]
    if added:
        original = [] if module.bias is None else [module.bias.double()]
        total = torch.stack([*original, *added]).sum(dim=0).to(module.weight.dtype)
        module.base_layer.bias = nn.Parameter(total, requires_grad=False)


def _split(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.split(max(1, _SLAB_ENTRIES // rows.shape[1]))


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(_BITS[values.dtype.itemsize])


def _error(weight: Tensor, restored: Tensor) -> _Error:
    """The error of a restored weight: a byte per entry, None if all are zero, and the entries that need more."""
    distances = _bits(weight).long() - _bits(restored).long()
    far = ((distances < -127) | (distances > 127)).view(-1).nonzero().view(-1)  # no abs: −2⁶³ has none
    entries = weight.contiguous().view(-1)[far].clone()
    distances.view(-1)[far] = 0
    return distances.to(torch.int8) if bool(distances.any()) else None, far, entries


def _checksum(rows: Tensor) -> int:
    """A sum of the bit patterns, each times a different odd factor, modulo 2⁶⁴."""
    total = 0
    for place, slab in enumerate(_split(rows)):
        bits = _bits(slab).view(-1).long()
        odd = torch.arange(1, 2 * len(bits), 2, device=bits.device)
        total = (total + (2 * place + 1) * int((bits * odd).sum())) % 2**64
    return total
