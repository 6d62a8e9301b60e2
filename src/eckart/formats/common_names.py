"""Adapters of several formats or spellings under one set of names, so that their updates can be combined."""

from collections.abc import Sequence
from typing import cast

from eckart.adapter.adapter import Adapter
from eckart.errors import MismatchError
from eckart.formats.components import components
from eckart.formats.families.family import BOTH
from eckart.formats.families.naming import FamilyFormat
from eckart.formats.families.recognize import readings
from eckart.formats.family_names import FAMILY_FORMATS, renamed_to_format
from eckart.formats.for_base import named
from eckart.formats.model_names import Base, Model
from eckart.formats.renaming import names_of


def to_common_names(adapters: Sequence[Adapter], base: Base | None = None) -> list[Adapter]:
    """The adapters as they are where all name a module alike, and otherwise under common names.

    These are the base's names; without a base, those of the PEFT adapters among them, or of the first one's format.

    Raises:
        MismatchError: names that cannot be determined without a base, or shapes that do not fit.
    """
    formats = {adapter.format for adapter in adapters}
    if len(adapters) < 2 or (len(formats) == 1 and (formats.isdisjoint(FAMILY_FORMATS) or not _differ(adapters))):
        return list(adapters)
    if base is not None and len(formats) > 1:
        return [named(adapter, base) for adapter in adapters]
    peft = [adapter for adapter in adapters if adapter.format == "peft"]
    if not peft:
        form = adapters[0].format if adapters[0].format in FAMILY_FORMATS else "diffusers"
        return [_in_format(adapter, cast("FamilyFormat", form)) for adapter in adapters]
    model = Model.of_layers({name: layer for adapter in peft for name, layer in adapter.outline().items()})
    return [adapter if adapter.format == "peft" else _among(adapter, model) for adapter in adapters]


def _differ(adapters: Sequence[Adapter]) -> bool:
    """Whether adapters of one format name the modules of a component in several ways."""
    styles: dict[str, set[tuple[str, str]]] = {}
    for adapter in adapters:
        found = readings(dict(adapter.outline()))
        for name, site in (found[0].sites if found else {}).items():
            inner = next(each for layout in BOTH for each in site.module.names(layout))
            layout = "" if site.module.is_same else site.layout
            begin = name.partition(inner.partition(".")[0].partition("_")[0])[0]
            styles.setdefault(site.component, set()).add((begin, layout))
    return any(len(each) > 1 for each in styles.values())


def _among(adapter: Adapter, model: Model) -> Adapter:
    """An adapter under the names of the modules that others update; of a pipeline, that of its only component."""
    if names_of(adapter.format) or adapter.format in FAMILY_FORMATS:
        parts = components(adapter) if adapter.format == "diffusers" else {"": adapter}
        if len(parts) > 1:
            msg = (
                f"one adapter has several components ({', '.join(parts)}), another is of a single model: convert the "
                "first to peft, which writes one adapter for each component"
            )
            raise MismatchError(msg)
        try:
            return named(adapter, model)
        except MismatchError as error:
            msg = (
                f"the PEFT adapters do not determine every name of a {adapter.format} adapter; give the model as "
                f"`base`\n{error}"
            )
            raise MismatchError(msg) from None
    return adapter


def _in_format(adapter: Adapter, form: FamilyFormat) -> Adapter:
    """An adapter under the names of a file format."""
    steps = renamed_to_format(adapter, form)
    faults = [fault for step in steps for fault in step.faults]
    if faults or (not steps and adapter.format != form):
        msg = f"this adapter in {adapter.format}'s format cannot be renamed to {form}'s names"
        known = "no family of image or video models has all of its modules; give the model as `base`"
        raise MismatchError.listing(msg, faults or [known])
    for step in steps:
        adapter = step.of(adapter, format=form)
    return adapter
