"""Single layers of an adapter weakened, strengthened or removed, by patterns of their names."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from eckart.adapter.adapter import Adapter
from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import Layer
from eckart.errors import MismatchError, OptionError
from eckart.operations.select_layers import select_layers

AnyLayer = TypeVar("AnyLayer", bound=Layer[Any])


def parse_scales(texts: list[str] | None) -> dict[str, float]:
    """Factors by pattern, written as `PATTERN=W`.

    Raises:
        OptionError: a text has another form.
    """
    scales = {}
    for text in texts or ():
        pattern, _, number = text.rpartition("=")
        try:
            scales[pattern] = float(number)
        except ValueError:
            pattern = ""
        if not pattern or not math.isfinite(scales[pattern]):
            msg = f"`scale` must be a pattern and a number, such as attn=0.5, got {text!r}"
            raise OptionError(msg)
    return scales


def with_scales(adapter: Adapter, scales: Mapping[str, float]) -> Adapter:
    """The adapter with the updates of some layers multiplied by a factor; those of factor 0 are removed.

    Args:
        adapter: the adapter.
        scales: factor by pattern of layers, as of `target`; of several that match a layer, the last one counts.

    Raises:
        MismatchError: a pattern matches nothing, no layer is left, or a layer's update is no multiple of its factors.
    """
    if not scales:
        return adapter
    outline = adapter.outline()
    factors: dict[str, float] = {}
    for pattern, factor in scales.items():
        factors |= dict.fromkeys(select_layers(outline, pattern, ()), factor)
    faults = [
        f"{name}: DoRA renormalizes the weight, so its update has no factor: remove it (0), or convert it to lora"
        for name, factor in factors.items()
        if factor not in (0, 1) and outline[name].magnitude is not None
    ]
    layers = {name: layer for name, layer in outline.items() if factors.get(name) != 0}
    if faults or (factors and not layers):
        msg = "`scale` cannot be applied"
        raise MismatchError.listing(msg, faults or ["every layer would be removed"])

    def scaled(name: str, layer: AnyLayer) -> AnyLayer:
        return replace(layer, alpha=layer.alpha * factors.get(name, 1.0))

    outlines = {name: scaled(name, layer) for name, layer in layers.items()}
    return replace(adapter, layers=Deferred(outlines, lambda name: scaled(name, adapter[name])))


def scaled_where_found(adapters: Sequence[Adapter], scales: Mapping[str, float]) -> list[Adapter]:
    """Several adapters, each with the factors of the patterns that match one of its layers.

    Raises:
        MismatchError: a pattern matches no layer of any of them; otherwise as `with_scales`.
    """
    found: list[dict[str, float]] = [{} for _ in adapters]
    for pattern, factor in scales.items():
        errors = []
        for adapter, own in zip(adapters, found, strict=True):
            try:
                select_layers(adapter.outline(), pattern, ())
                own[pattern] = factor
            except MismatchError as error:
                errors.append(error)
        if len(errors) == len(adapters):
            raise errors[0]
    return [with_scales(adapter, own) for adapter, own in zip(adapters, found, strict=True)]
