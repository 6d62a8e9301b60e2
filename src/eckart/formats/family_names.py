"""Adapters of image and video models under other names: of another file format, or of their base.

The family of the model says what the modules are called in each layout (`formats.families`). A name of the base itself,
whatever the model, needs no family.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from eckart.adapter.adapter import Adapter
from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import AdapterOutline, LayerOutline, TensorOutline
from eckart.checkpoint.naming import nearest_names
from eckart.errors import MismatchError
from eckart.formats.families.family import BOTH, Component, Family, Layout, Site
from eckart.formats.families.naming import Assignment, Destination, FamilyFormat, Finds, one_assignment, to_format
from eckart.formats.families.recognize import Reading, known_layers, readings
from eckart.formats.families.table import FAMILIES
from eckart.formats.family_moves import renaming_of
from eckart.formats.model_names import Model
from eckart.formats.renaming import Renaming, rescaled

if TYPE_CHECKING:
    from torch import Tensor

FAMILY_FORMATS = ("kohya", "comfyui", "diffusers")


def renamed_to_format(
    adapter: Adapter, form: FamilyFormat, *, families: Sequence[Family] = (), model: Model | None = None
) -> list[Renaming]:
    """The steps from the names of an adapter to those of a format; none if no family knows its modules.

    Args:
        adapter: the adapter.
        form: the format.
        families: the families that it may be of; all of them by default.
        model: its base, which decides between families.

    Raises:
        MismatchError: the modules are of several families, or the families that know them name them differently.
    """
    layers = dict(adapter.outline())
    candidates = _candidates(layers, families, model)
    if not candidates:
        return []
    if form != "diffusers" and any(not site.module.written for each in candidates for site in each.sites.values()):
        split = renamed_to_format(adapter, "diffusers", families=families, model=model)
        parts = split[0].of(adapter, format="diffusers")
        return split if split[0].faults else [*split, *renamed_to_format(parts, form, families=families, model=model)]

    def finds(family: Family) -> Finds:
        return to_format(family, form)

    reading, found, faults = one_assignment(candidates, layers, finds)
    added, more = _tensors(adapter.added, reading.family, finds(reading.family))
    saved, others = _saved(adapter, reading.family, finds(reading.family))
    more += others
    renaming = renaming_of(adapter, found, [*faults, *more], model.views if model else {})
    moves = renaming.moves if form == "diffusers" else [rescaled(move) for move in renaming.moves]
    return [replace(renaming, moves=moves, added=added, saved=saved)]


def unnamed_layers(
    layers: Mapping[str, LayerOutline], form: FamilyFormat, *, families: Sequence[Family] = (), model: Model
) -> dict[str, str]:
    """The layers of a model that files of a format cannot name, each with the reason; arguments as before.

    Raises:
        MismatchError: several families have the layers, and name them differently.
    """
    known = known_layers(layers, families)
    if not known:
        return dict.fromkeys(
            layers, f"no such module in any of {', '.join(family.title for family in FAMILIES.values())}"
        )
    candidates = _candidates(dict(known), families, model)
    reading, _, faults = one_assignment(candidates, known, lambda family: to_format(family, form))
    reasons = dict(fault.split(": ", 1) for fault in faults)
    return reasons | {name: f"no such module in {reading.family.title}" for name in layers if name not in known}


def renamed_to_base(adapter: Adapter, model: Model, *, families: Sequence[Family] = ()) -> Renaming:
    """From the names of an adapter to those of its base: the base's own names, or those that the family relates."""
    layers = dict(adapter.outline())
    owners = {name: name.rpartition(".")[0] for name in (*adapter.added, *adapter.modules_to_save)}
    direct = {name: modules for name in (*layers, *owners.values()) if (modules := model.modules(name))}
    if len(direct) == len({*layers, *owners.values()}):
        faults = [f"{name}: may be {' or '.join(found)}" for name, found in direct.items() if len(found) > 1]
        found = [Assignment(direct[name][0], (name,)) for name in layers]
        new = {f"{direct[owner][0]}.{name.rpartition('.')[2]}": name for name, owner in owners.items()}
        added = {name: old for name, old in new.items() if old in adapter.added}
        saved = _read(adapter, {name: old for name, old in new.items() if old in adapter.modules_to_save})
        return replace(renaming_of(adapter, found, faults, model.views), added=added, saved=saved)
    try:
        candidates = _candidates(layers, families, model)
    except MismatchError:
        candidates = []
    if not candidates:
        known = [Assignment(direct[name][0], (name,)) for name in layers if name in direct]
        return renaming_of(adapter, known, _unknown([*layers, *owners.values()], direct, model), model.views)
    reading, found, faults = one_assignment(candidates, layers, partial(_base_finds, model=model))
    find = _base_finds(reading.family, model)
    added, more = _tensors(adapter.added, reading.family, find)
    saved, others = _saved(adapter, reading.family, find)
    return replace(renaming_of(adapter, found, [*faults, *more, *others], model.views), added=added, saved=saved)


def _saved(adapter: Adapter, family: Family, find: Finds) -> "tuple[Deferred[Tensor, TensorOutline], list[str]]":
    """The tensors that replace those of the model under their new names, and faults of those that have none."""
    names, faults = _tensors(adapter.modules_to_save, family, find)
    return _read(adapter, names), faults


def _read(adapter: Adapter, names: Mapping[str, str]) -> "Deferred[Tensor, TensorOutline]":
    """Replacing tensors by their new names, read when they are looked up."""
    outlines = adapter.outline().modules_to_save
    return Deferred({new: outlines[old] for new, old in names.items()}, lambda new: adapter.modules_to_save[names[new]])


def _tensors(tensors: Iterable[str], family: Family, find: Finds) -> tuple[dict[str, str], list[str]]:
    """The old names of tensors by their new ones, and faults of those that have none."""
    names, faults = {}, []
    for name in tensors:
        owner, _, leaf = name.rpartition(".")
        site = next(iter(family.sites(owner)), None) or family.outside(owner)
        if site is None or not site.module.is_whole:
            faults.append(f"{name}: no such module in {family.title}")
            continue
        try:
            names[f"{find(site).names[0]}.{leaf}"] = name
        except ValueError as fault:
            faults.append(f"{name}: {fault}")
    return names, faults


def _candidates(layers: Mapping[str, LayerOutline], families: Sequence[Family], model: Model | None) -> list[Reading]:
    """The families that an adapter may be of; with a base, those whose modules it has, if there are any."""
    candidates = readings(layers, families)
    if model is None or len(candidates) < 2:
        return candidates
    within = [
        each
        for each in candidates
        if all(_is_there(_base_finds(each.family, model), site) for site in each.sites.values())
    ]
    named = [each for each in within if model.class_name in each.family.classes]
    return named or within or candidates


def _is_there(find: Finds, site: Site) -> bool:
    try:
        find(site)
    except ValueError:
        return False
    return True


def _base_finds(family: Family, model: Model) -> Finds:
    """Where a base has the modules of a family: under the original names or under those of diffusers."""

    def find(site: Site) -> Destination:
        part = family.component(site.component)
        layouts: tuple[Layout, ...] = (site.layout, *(layout for layout in BOTH if layout != site.layout))
        for layout in layouts:
            for prefix in _prefixes(part, layout, model):
                names = tuple(_present(model, prefix, part, name) for name in _all_names(site, layout))
                chosen = [name for name in names if name]
                if layout == "original" and chosen:
                    return Destination("original", (chosen[0],))
                if layout == "diffusers" and chosen:
                    sizes = tuple(view.shape[0] for name in chosen if (view := model.views.get(name)))
                    complete = sizes if len(sizes) == len(names) else ()
                    return Destination("diffusers", tuple(name or "" for name in names), complete)
        name = site.names(site.layout)[site.part if site.layout == "diffusers" else 0]
        near = nearest_names(name, model.names, count=3)
        msg = f"{model.source} has no such module of {family.title}" + (
            f"; the nearest are {', '.join(near)}" if near else ""
        )
        raise ValueError(msg)

    return find


def _all_names(site: Site, layout: Layout) -> Iterator[str]:
    for name in site.module.names(layout):
        yield name.format(*site.numbers)


def _prefixes(part: Component, layout: Layout, model: Model) -> Iterator[str]:
    """The beginnings that names of a component may have in a base, in a layout."""
    yield f"{part.name}."
    for prefix, layouts in part.dotted.items():
        if layout in layouts:
            yield prefix
    if not model.is_pipeline:
        yield ""


def _present(model: Model, prefix: str, part: Component, name: str) -> str | None:
    """A module's name in the base; newer text encoders lack the optional beginning of names."""
    names = (prefix + name, prefix + name.removeprefix(part.optional) if part.optional else prefix + name)
    return next((each for each in names if each in model.names), None)


def _unknown(names: Sequence[str], direct: Mapping[str, object], model: Model) -> list[str]:
    """Faults of names that neither the base nor a family has."""
    faults = []
    for name in names:
        if name not in direct:
            near = nearest_names(name, model.names, count=3)
            hint = f"; the nearest are {', '.join(near)}" if near else ""
            faults.append(f"{name}: no module of this name in {model.source}{hint}")
    return faults


def is_of_family(adapter: AdapterOutline, families: Sequence[Family] = ()) -> bool:
    """Whether every module of an adapter is one of a family."""
    try:
        return bool(readings(dict(adapter), families))
    except MismatchError:
        return False
