"""One layer at another rank: truncated exactly, or padded without changing its update, with its error as written."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from eckart.adapter.adapter import AdapterLayer
from eckart.errors import OptionError
from eckart.linalg import LowRank, Spectrum
from eckart.linalg.finite import count_non_finite, require_finite, too_large, too_small
from eckart.linalg.scaling import frobenius_norm, largest_of, shifted
from eckart.linalg.slabs import as_slabs


def product_spectrum(product: LowRank) -> Spectrum:
    """The complete spectrum of a product in float64, with values that are only rounding set to zero."""
    spectrum = product.spectrum()
    values = torch.where(spectrum.singular_values > product.rounding_floor, spectrum.singular_values, 0.0)
    return replace(spectrum, singular_values=values, fro_norm=frobenius_norm(as_slabs(values[None])))


def update_norm(name: str, layer: AdapterLayer, norm: float) -> float:
    """‖Δ‖_F of a layer from the norm of its unscaled product.

    Raises:
        OptionError: no float64 is that large.
    """
    if math.isinf(size := abs(layer.scaling) * norm):
        alpha = f"{layer.alpha:.4g} / {'√' if layer.rslora else ''}{layer.rank}"
        msg = f"{name}: with its scale, alpha / rank = {alpha}, the norm of its update is larger than any float64"
        raise OptionError(msg)
    return size


def low_rank_of(name: str, layer: AdapterLayer) -> LowRank:
    """`layer.low_rank()`, after a check that its norm is a number.

    Raises:
        OptionError: no float64 is that large.
    """
    product = layer.unscaled()
    if math.isinf(abs(layer.scaling) * product.norm_limit):
        update_norm(name, layer, product.fro_norm)
    return product * layer.scaling


def update_spectrum(name: str, layer: AdapterLayer, product: LowRank) -> Spectrum:
    """The complete spectrum of a layer's update: of the scaling times `product`.

    Raises:
        OptionError: no float64 is as large as its norm.
    """
    known = product_spectrum(product)
    norm = update_norm(name, layer, known.fro_norm)
    return replace(known, singular_values=known.singular_values * abs(layer.scaling), fro_norm=norm)


def at_rank(
    layer: AdapterLayer, target: LowRank, rank: int, *, dtype: torch.dtype | None, generator: torch.Generator
) -> AdapterLayer:
    """The layer with the best update of a rank: unchanged if it has that rank already, else padded or truncated.

    Args:
        layer: provides module, scaling, bias and magnitude; its factors multiply to `target`, up to rounding.
        target: the product to approximate, as `unscaled` returns it: in units of the layer's scaling, in float64.
        rank: rank of the result; if higher than that of the layer or of the update, the factors are padded.
        dtype: data type of the factors; None keeps that of the layer.
        generator: source of the padding.
    """
    if rank < layer.rank:
        U, S, Vh = target.svd()
        count = min(rank, int((target.rounding_floor < S).sum()))
        if count == 0:
            return zero_layer(cast(layer, dtype), rank, generator)
        layer = layer.with_product(LowRank.from_svd(U[:, :count], S[:count], Vh[:count]), dtype=dtype)
        return padded(layer, rank, generator)
    return padded(cast(layer, dtype), rank, generator)


def padded(layer: AdapterLayer, rank: int, generator: torch.Generator) -> AdapterLayer:
    """The same update with factors of a higher rank, from which training can continue; no change at the same rank."""
    if rank <= layer.rank:
        return layer
    more = zero_layer(layer, rank - layer.rank, generator)
    A, B = torch.cat([layer.lora_A, more.lora_A]), torch.cat([layer.lora_B, more.lora_B], dim=1)
    return replace(layer, lora_A=A, lora_B=B, alpha=alpha_for(layer.scaling, rank, rslora=layer.rslora))


def zero_layer(layer: AdapterLayer, rank: int, generator: torch.Generator) -> AdapterLayer:
    """A zero update of that rank as PEFT initializes one: random lora_A, zero lora_B; vice versa for an embedding."""
    A, B = layer.lora_A, layer.lora_B
    new_A, new_B = A.new_zeros(rank, *A.shape[1:]), B.new_zeros(len(B), rank, *B.shape[2:])
    if layer.kind == "embedding":
        new_B = torch.randn(new_B.shape, generator=generator).to(B)
    else:
        # Kaiming's uniform distribution with a = √5, as PEFT draws it: ±1/√fan-in.
        new_A = ((2 * torch.rand(new_A.shape, generator=generator) - 1) / A[0].numel() ** 0.5).to(A)
    return replace(layer, lora_A=new_A, lora_B=new_B, alpha=alpha_for(layer.scaling, rank, rslora=layer.rslora))


def alpha_for(scaling: float, rank: int, *, rslora: bool) -> float:
    """The alpha for a scaling at a rank, exact where a float can represent it."""
    root = math.sqrt(rank) if rslora else rank
    alpha = scaling * root
    near = (alpha, math.nextafter(alpha, math.inf), math.nextafter(alpha, -math.inf))
    return next((value for value in near if value / root == scaling), alpha)


def measured_error(target: LowRank, layer: AdapterLayer, *, scaling: float) -> float:
    """‖Δ − sBA‖_F / ‖Δ‖_F of the factors as stored, in float64 and without the products.

    Args:
        target: the update in units of `scaling`.
        layer: the approximation, whose own scaling may differ from `scaling` in the last bit.
        scaling: of the update; 0 for a zero one.
    """
    norm = product_spectrum(target).fro_norm if scaling else 0.0
    if not norm:
        return 0.0
    product = layer.unscaled()
    return target.distance(product if layer.scaling == scaling else product * (layer.scaling / scaling)) / norm


def check_finite(name: str, layer: AdapterLayer) -> AdapterLayer:
    """Return the layer unchanged if it is finite.

    Raises:
        NotFiniteError: it contains NaN or Inf.
    """
    for tensor in layer.tensors().values():
        require_finite(tensor, name, rows=layer.tensors().values)
    return layer


def check_range(name: str, layer: AdapterLayer, norm: float) -> AdapterLayer:
    """Return a computed layer unchanged if it fits its dtype.

    Args:
        name: what messages call it.
        layer: the layer.
        norm: ‖Δ‖_F of the update that it approximates; 0 if it may be zero.

    Raises:
        OptionError: its values are too large for its dtype, or all too small, or its alpha is too large for a float.
    """
    if not math.isfinite(layer.alpha):
        msg = f"{name}: its alpha, the scale {layer.scaling:.4g} times rank {layer.rank}, is larger than any float64"
        raise OptionError(msg)
    if count_non_finite(layer.tensors().values()):
        raise OptionError(too_large(name, layer.lora_A.dtype))
    if norm and layer.scaling and not (layer.lora_A.any() and layer.lora_B.any()):
        raise OptionError(too_small(name, layer.lora_A.dtype, norm / abs(layer.scaling)))
    return layer


def cast(layer: AdapterLayer, dtype: torch.dtype | None) -> AdapterLayer:
    """The layer with its factors in another dtype.

    Where that does not hold one of them, both are first brought to one size by a power of two; their product stays.
    """
    if dtype is None:
        return layer
    A, B = layer.lora_A, layer.lora_B
    if not (_fits(A, dtype) and _fits(B, dtype)):
        exponent = (math.frexp(largest_of(B))[1] - math.frexp(largest_of(A))[1]) // 2
        A, B = shifted(A.to(torch.float64), exponent), shifted(B.to(torch.float64), -exponent)
    return replace(layer, lora_A=A.to(dtype), lora_B=B.to(dtype))


def _fits(factor: Tensor, dtype: torch.dtype) -> bool:
    """Whether the largest value of a factor is a normal number of a dtype, or zero."""
    largest, limits = largest_of(factor), torch.finfo(dtype)
    return largest == 0 or limits.smallest_normal <= largest <= limits.max
