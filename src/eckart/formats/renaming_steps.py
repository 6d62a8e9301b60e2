"""The steps that bring an adapter's names from one format to another.

Adapters of image and video models are renamed at once, by the table of their family. Those of language models go
through the names of the model's modules, which are PEFT's.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from eckart.adapter.adapter import Adapter
from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import AdapterFormat
from eckart.checkpoint.base_names import NamesOfBase
from eckart.errors import MismatchError
from eckart.formats.components import component_of
from eckart.formats.expert_modules import with_expert_modules
from eckart.formats.families.family import Family
from eckart.formats.families.naming import FamilyFormat
from eckart.formats.families.recognize import unknown_modules
from eckart.formats.family_names import FAMILY_FORMATS, renamed_to_base, renamed_to_format
from eckart.formats.kohya_names import is_of_language_model
from eckart.formats.model_names import Model
from eckart.formats.renaming import Renaming, names_of, to_component

Steps = list[tuple[Renaming, AdapterFormat]]
"""Renamings one after another, each with the format of its result."""


def steps_to(adapter: Adapter, to: AdapterFormat, *, model: Model | None, families: Sequence[Family]) -> Steps:
    """The steps to the names of a format; their faults say what cannot be renamed.

    Args:
        adapter: the adapter.
        to: the format.
        model: its base.
        families: the families of image and video models that it may be of.

    Raises:
        MismatchError: the modules are of several families, or families that name them differently.
    """
    of_model = to == "peft" and not families and not (model and model.is_pipeline) and is_of_language_model(adapter)
    if to in ("peft", *FAMILY_FORMATS) and adapter.format in ("peft", *FAMILY_FORMATS) and not of_model:
        steps = _of_family(adapter, to, model, families)
        if steps is not None:
            return steps
    steps = []
    if names := names_of(adapter.format):
        renaming = names.to_modules(adapter, model)
        steps.append((renaming, "diffusers" if renaming.is_pipeline else "peft"))
        adapter = renaming.of(adapter, format=steps[-1][1])
    if names := names_of(to):
        steps.append((names.from_modules(adapter, model), to))
    return steps


def faults_in_base(adapter: Adapter, steps: Steps, model: Model, families: Sequence[Family]) -> list[str]:
    """Why an adapter does not fit its base."""
    if adapter.format in FAMILY_FORMATS and model.modules_are_known:
        placed = renamed_to_base(adapter, model, families=families)
        return [*placed.faults, *model.misfits(placed.of(adapter, format="peft").outline())]
    if names_of(adapter.format) and steps:
        adapter = steps[0][0].of(adapter)
    stored = model.checkpoint
    placed = with_expert_modules(adapter, NamesOfBase([*stored.tensors], stored).find) if stored else adapter
    return model.misfits(placed.outline())


def _of_family(adapter: Adapter, to: AdapterFormat, model: Model | None, families: Sequence[Family]) -> Steps | None:
    """The steps for an adapter of an image or video model; None if it is not known to be one."""
    form = cast("FamilyFormat", "diffusers" if to == "peft" else to)
    first: Steps = []
    if adapter.format == "peft":
        part = component_of(adapter)
        if part and part.startswith("text_encoder"):
            first = [(_in_component(adapter, part), "diffusers")]
            adapter = first[0][0].of(adapter, format="diffusers", modules_to_save=_saved(adapter, part))
    try:
        renamings = renamed_to_format(adapter, form, families=families, model=model)
    except MismatchError:
        if model is None or not model.is_pipeline:
            if adapter.task_type:  # of a language model, some of whose names an image model has too
                return None
            raise
        renamings = []
    if renamings:
        return [*first, *((renaming, form) for renaming in renamings)]
    if model and model.is_pipeline and form == "diffusers" and adapter.format != "peft":
        return [*first, (renamed_to_base(adapter, model), form)]
    if first or (adapter.format == "diffusers" and to == "peft"):
        return first
    if adapter.format in ("diffusers", "comfyui") or to == "comfyui":
        return [(Renaming([], unknown_modules(list(adapter), families)), form)]
    return None


def _in_component(adapter: Adapter, part: str) -> Renaming:
    return replace(to_component(adapter, part), config=adapter.config)


def _saved(adapter: Adapter, part: str) -> Deferred:
    specs = {f"{part}.{name}": spec for name, spec in adapter.outline().modules_to_save.items()}
    return Deferred(specs, lambda name: adapter.modules_to_save[name.removeprefix(f"{part}.")])
