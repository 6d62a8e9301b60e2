"""An adapter under the module names of its base, whatever the names in its files."""

from typing import TYPE_CHECKING

from eckart.adapter.adapter import Adapter
from eckart.errors import MismatchError
from eckart.formats.components import components
from eckart.formats.model_names import Base, Model
from eckart.formats.renaming import names_of

if TYPE_CHECKING:
    from eckart.formats.families.family import Family


def named(adapter: Adapter, base: Base, *, families: "tuple[Family, ...]" = ()) -> Adapter:
    """An adapter under the module names of its base.

    If the base is a pipeline, names begin with the component, and the adapter is in diffusers' format; under the names
    of a single model it is in PEFT's.

    Raises:
        MismatchError: names that the base does not have or that mean several modules, or shapes that differ.
    """
    from eckart.formats.family_names import FAMILY_FORMATS, renamed_to_base

    model = Model.of(base)
    faults: list[str] = []
    renaming = None
    if adapter.format in FAMILY_FORMATS:
        renaming = renamed_to_base(adapter, model, families=families)
    elif names := names_of(adapter.format):
        renaming = names.to_modules(adapter, model)
    if renaming is not None:
        faults += renaming.faults
        texts = {} if adapter.format in FAMILY_FORMATS else renaming.config  # of a LoRA file
        adapter = renaming.of(adapter, format="diffusers" if model.is_pipeline else "peft", config=dict(texts))
    faults += model.misfits(adapter.outline())
    if faults:
        msg = f"the adapter does not fit {model.source}"
        raise MismatchError.listing(msg, faults)
    return components(adapter)[model.component] if model.component else adapter


def rename_for_base(base: Base, adapter: Adapter) -> Adapter:
    """An adapter under the module names of its base; in PEFT's format it mostly has them already.

    Raises:
        MismatchError: names that `base` does not have, or shapes that differ.
    """
    if adapter.format != "peft":
        return named(adapter, base)
    model = Model.of(base)
    if model.names.issuperset(adapter.outline()):
        return adapter
    from eckart.formats.family_names import is_of_family, renamed_to_base

    if not is_of_family(adapter.outline()):
        return adapter
    renaming = renamed_to_base(adapter, model)
    return adapter if renaming.faults else renaming.of(adapter, config=adapter.config)
