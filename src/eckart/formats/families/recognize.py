"""Which family an adapter or a model is of, from the names and shapes of its modules."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from eckart.adapter.outline import Layer
from eckart.checkpoint.naming import nearest_names
from eckart.errors import MismatchError
from eckart.formats.families.family import Family, Site
from eckart.formats.families.table import FAMILIES

AnyLayer = TypeVar("AnyLayer", bound=Layer[Any])
_SHOWN = 3  # names of each family in a message
_NUMBER = re.compile(r"(?<![^._])\d+(?![^._])")


@dataclass(frozen=True)
class Reading:
    """An adapter's names as those of one family."""

    family: Family
    sites: Mapping[str, Site]


def readings(layers: Mapping[str, Layer[Any]], among: Collection[Family] = ()) -> list[Reading]:
    """The families that an adapter may be of; none if no family knows any of its modules.

    Where names fit several, shapes decide, then the numbers of blocks.

    Args:
        layers: outlines of the layers.
        among: the families to consider; all of them by default.

    Raises:
        MismatchError: only some of the modules belong to a family; all others are listed.
    """
    families = among or FAMILIES.values()
    found = [
        (family, {name: site for name, layer in layers.items() if (site := _site(family, name, layer))})
        for family in families
    ]
    partial = {family.name: sites for family, sites in found if sites}
    if not partial:
        return []
    most = max(len(sites) for sites in partial.values())
    complete = [
        Reading(family, sites)
        for family, own in found
        if len(own) == most and (sites := _completed(family, own, layers))
    ]
    if not complete:
        raise _misfit(layers, partial)
    if any(_has_shapes(reading, layers) for reading in complete):
        complete = [reading for reading in complete if _has_no_misfit(reading, layers)]
    for rule in (_has_blocks, _has_every_block):
        fitting = [reading for reading in complete if rule(reading, layers)]
        complete = fitting or complete
    return complete


def known_layers(layers: Mapping[str, AnyLayer], among: Collection[Family] = ()) -> Mapping[str, AnyLayer]:
    """The layers of the family that has the most of them; none if no family has any.

    Args:
        layers: outlines of the layers.
        among: the families to consider; all of them by default.
    """
    own = (
        {name: layer for name, layer in layers.items() if _site(family, name, layer) or family.outside(name)}
        for family in among or FAMILIES.values()
    )
    return max(own, key=len, default={})


def titles(candidates: Sequence[Reading]) -> str:
    """The families as part of a message: their titles and what `--family` calls them."""
    return ", ".join(f"{each.family.title} ({each.family.name})" for each in candidates)


def _site(family: Family, name: str, layer: Layer[Any]) -> Site | None:
    """What a name means, of several meanings the first that has the shape."""
    sites = family.sites(name)
    return next((site for site in sites if _fits(site, layer)), next(iter(sites), None))


def _completed(family: Family, sites: Mapping[str, Site], layers: Mapping[str, Layer[Any]]) -> dict[str, Site] | None:
    """The sites of all layers; None if the family lacks one."""
    complete = {name: sites.get(name) or family.outside(name) for name in layers}
    return None if None in complete.values() else {name: site for name, site in complete.items() if site}


def _fits(site: Site, layer: Layer[Any]) -> bool:
    return site.fits(layer.lora_B.shape[0], layer.lora_A.shape[1])


def _has_shapes(reading: Reading, layers: Mapping[str, Layer[Any]]) -> bool:
    """Whether shapes are evidence for the family: all of them fit, and one is peculiar to a module."""
    is_peculiar = any(site.module.ratio is not None for site in reading.sites.values())
    return is_peculiar and all(_fits(site, layers[name]) for name, site in reading.sites.items())


def _has_no_misfit(reading: Reading, layers: Mapping[str, Layer[Any]]) -> bool:
    return all(_fits(site, layers[name]) for name, site in reading.sites.items())


def _has_blocks(reading: Reading, _: Mapping[str, Layer[Any]]) -> bool:
    return all(max(seen) < max(depths) for seen, depths in _blocks(reading))


def _has_every_block(reading: Reading, _: Mapping[str, Layer[Any]]) -> bool:
    return all(len(seen) in depths for seen, depths in _blocks(reading))


def _blocks(reading: Reading) -> Iterator[tuple[set[int], tuple[int, ...]]]:
    """The numbers of the denoiser's blocks that the adapter changes, and how many the published models have."""
    for begin, depths in reading.family.depths.items():
        sites = [site for site in reading.sites.values() if site.component == reading.family.components[0].name]
        places = [(site.module.parts[0].module, site.numbers) for site in sites]
        if seen := {numbers[0] for name, numbers in places if numbers and name.startswith(f"{begin}.")}:
            yield seen, depths


def _misfit(layers: Mapping[str, Layer[Any]], partial: Mapping[str, Mapping[str, Site]]) -> MismatchError:
    """The error for an adapter of which every family knows only some modules."""
    most = max(partial, key=lambda name: len(partial[name]))
    lines = []
    rest = set(layers) - set(partial[most])
    for name, sites in sorted(partial.items(), key=lambda item: -len(item[1])):
        own = [layer for layer in sites if name == most or layer in rest]
        if own:
            lines.append(f"{FAMILIES[name].title}: {len(own)} layers, such as {', '.join(own[:_SHOWN])}")
            rest -= set(own)
    for layer in rest:
        near = nearest_names(layer, _names_like(layer, FAMILIES[most]))
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        lines.append(f"{layer}: no such module in {', '.join(FAMILIES[name].title for name in partial)}{hint}")
    return MismatchError.listing("these layers are not all of one family of models", lines)


def unknown_modules(names: Sequence[str], among: Collection[Family] = (), *, remedy: str = "") -> list[str]:
    """Faults of modules that no family has: the families considered, and the three nearest names to the first few."""
    families = among or FAMILIES.values()
    known = ", ".join(family.title for family in families)
    faults = [f"{name}: no such module in any of {known}{remedy}" for name in names]
    for name in names[:_SHOWN]:
        likes = {like for family in families for like in _names_like(name, family)}
        if near := nearest_names(_NUMBER.sub("N", name), sorted(likes), count=_SHOWN):
            faults.append(f"the nearest names to {name} are {', '.join(near)}")
    return faults


def _names_like(name: str, family: Family) -> list[str]:
    """All names of a family in the spelling of one of them, with N for the number of a block."""
    names = []
    for part in family.components:
        flat = next((prefix for prefix in part.flat if name.startswith(prefix) and "." not in name), None)
        dotted = next((prefix for prefix in part.dotted if name.startswith(prefix)), "")
        for layout in ("original", "diffusers"):
            inner = [each.replace("{}", "N") for row in part.modules for each in row.names(layout)]
            names += [flat + each.replace(".", "_") if flat else dotted + each for each in inner]
    return names
