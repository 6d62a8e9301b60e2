"""Adapters of several formats under the names of one, so that their updates of a module can be combined."""

from collections.abc import Sequence

from eckart.adapter.adapter import Adapter
from eckart.errors import MismatchError
from eckart.formats.components import components
from eckart.formats.model_names import Base, Model
from eckart.formats.renaming import named, names_of


def to_common_names(adapters: Sequence[Adapter], base: Base | None = None) -> list[Adapter]:
    """The adapters as they are where all have one format, and otherwise under module names.

    These are the base's names; without a base, those of the PEFT adapters among them, or of a diffusion pipeline.

    Raises:
        MismatchError: names that cannot be determined without a base, or shapes that do not fit.
        MissingExtraError: names that only diffusers knows, and it is not installed.
    """
    if len({adapter.format for adapter in adapters}) < 2:
        return list(adapters)
    if base is not None:
        return [named(adapter, base) for adapter in adapters]
    peft = [adapter for adapter in adapters if adapter.format == "peft"]
    if not peft:
        return [_in_pipeline(adapter) for adapter in adapters]
    model = Model.of_layers({name: layer for adapter in peft for name, layer in adapter.outline().items()})
    return [adapter if adapter.format == "peft" else _among(adapter, model) for adapter in adapters]


def _among(adapter: Adapter, model: Model) -> Adapter:
    """An adapter under the names of the modules that others update; of a pipeline, that of its only component."""
    if names_of(adapter.format):
        try:
            return named(adapter, model)
        except MismatchError as error:
            msg = (
                f"the PEFT adapters do not determine every name of a {adapter.format} adapter; give the model as "
                f"`base`\n{error}"
            )
            raise MismatchError(msg) from None
    parts = components(adapter)
    if len(parts) > 1:
        msg = (
            f"one adapter has several components ({', '.join(parts)}), another is of a single model: convert the first "
            "to peft, which writes one adapter for each component"
        )
        raise MismatchError(msg)
    return next(iter(parts.values()))


def _in_pipeline(adapter: Adapter) -> Adapter:
    """An adapter under diffusers' names."""
    names = names_of(adapter.format)
    if names is None:
        return adapter
    renaming = names.to_modules(adapter, None)
    if renaming.faults:
        msg = f"this adapter in {adapter.format}'s format cannot be renamed to diffusers' names"
        raise MismatchError.listing(msg, renaming.faults)
    return renaming.of(adapter, format="diffusers")
