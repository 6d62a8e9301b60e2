"""Adapters of several formats under the names of one, so that their updates of a module can be put together."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.errors import MismatchError
from eckart.formats.components import components
from eckart.formats.model_names import Base
from eckart.formats.renaming import named, to_modules


def to_common_names(adapters: Sequence[Adapter], base: Base | None = None) -> list[Adapter]:
    """The adapters as they are where all have one format, and otherwise under module names.

    These are the base's; without one those of the PEFT adapters among them, or of a diffusion pipeline.

    Raises:
        MismatchError: names that nothing here tells, or shapes that do not fit; a base tells them.
        MissingExtraError: names that only diffusers tells, when it is not installed.
    """
    if len({adapter.format for adapter in adapters}) < 2:
        return list(adapters)
    if base is not None:
        return [named(adapter, base) for adapter in adapters]
    known = [adapter for adapter in adapters if adapter.format == "peft"]
    if not known:
        return [_in_pipeline(adapter) for adapter in adapters]
    modules = {f"{name}.weight": _weight(layer) for each in known for name, layer in each.outline().items()}
    return [adapter if adapter.format == "peft" else _among(adapter, modules) for adapter in adapters]


def _among(adapter: Adapter, modules: dict[str, Tensor]) -> Adapter:
    """An adapter under the names of the modules that others update; of a pipeline, that of its only component."""
    if adapter.format == "kohya":
        try:
            return named(adapter, modules)
        except MismatchError as error:
            msg = f"the PEFT adapters beside it do not tell every name of a kohya adapter; --base MODEL does\n{error}"
            raise MismatchError(msg) from None
    parts = components(adapter)
    if len(parts) > 1:
        msg = (
            f"an adapter of several components ({', '.join(parts)}) and one of a single model: eckart convert --to peft"
        )
        raise MismatchError(msg)
    return next(iter(parts.values()))


def _in_pipeline(adapter: Adapter) -> Adapter:
    """A kohya adapter under diffusers' names."""
    if adapter.format != "kohya":
        return adapter
    renaming = to_modules(adapter, None)
    if renaming.faults:
        msg = "an adapter in kohya's format cannot be put beside one in diffusers'"
        raise MismatchError.listing(msg, renaming.faults)
    return renaming.of(adapter, config={}, format="diffusers")


def _weight(layer: AdapterLayer) -> Tensor:
    """The weight that a layer updates, without values."""
    rows, columns = layer.lora_B.shape[0], layer.lora_A.shape[1:]
    if layer.kind == "embedding":
        return torch.empty(prod(columns), rows, device="meta")
    return torch.empty(rows, *columns, device="meta")
