"""New names for an adapter of a family: each layer renamed, cut into parts, or joined with others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from eckart.adapter.outline import LayerOutline
from eckart.errors import MismatchError
from eckart.formats.families.family import Component, Family, Layout, Part, Site
from eckart.formats.families.recognize import Reading, titles

FamilyFormat = Literal["kohya", "comfyui", "diffusers"]
_READERS = {"kohya": "kohya's trainers", "comfyui": "ComfyUI's files"}


@dataclass(frozen=True)
class Destination:
    """Where a module goes.

    Attributes:
        layout: the layout there.
        names: name of the module, or of each of its parts, in that layout; "" for a part that is not there.
        sizes: outputs of each part, if they are known; otherwise the family's shares decide.
        parts: names of the parts, for those that do not have the family's shares and cannot be joined.
    """

    layout: Layout
    names: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    parts: tuple[str, ...] = ()


Finds = Callable[[Site], Destination]
"""The destination of a site; ValueError says why it has none."""


@dataclass(frozen=True)
class Assignment:
    """One layer of the renamed adapter.

    Attributes:
        new: its name.
        old: the layers that it is made of.
        parts: all parts of a module that is cut or joined; () if one layer is only renamed.
        cut: index of the part that is cut out of `old`; None if the old layers are joined.
        present: indices of the parts that the joined layers are.
        transposed: whether inputs and outputs change places.
    """

    new: str
    old: tuple[str, ...]
    parts: tuple[Part, ...] = ()
    cut: int | None = None
    present: tuple[int, ...] = ()
    transposed: bool = False


def to_format(family: Family, form: FamilyFormat) -> Finds:
    """The names of a file format."""

    def find(site: Site) -> Destination:
        part = family.component(site.component)
        prefix, layout = _written(part, form)
        if form != "diffusers" and prefix == f"{part.name}.":
            msg = f"{_READERS[form]} have no name for a module of {part.name} of {family.title}"
            raise ValueError(msg)
        names, parts = (_spelled(prefix, site.names(each), flat=form == "kohya") for each in (layout, "diffusers"))
        return Destination(layout, names, parts=parts)

    return find


def _written(part: Component, form: FamilyFormat) -> tuple[str, Layout]:
    """The prefix and the layout of a component's names in files of a format; its own prefix if it has no other."""
    prefixes = {"kohya": part.flat, "comfyui": part.dotted}.get(form, {})
    for prefix, layouts in prefixes.items():
        return prefix, layouts[0]
    return f"{part.name}.", "diffusers"


def _spelled(prefix: str, names: Sequence[str], *, flat: bool) -> tuple[str, ...]:
    return tuple(prefix + (name.replace(".", "_") if flat else name) for name in names)


def assign(reading: Reading, layers: Mapping[str, LayerOutline], find: Finds) -> tuple[list[Assignment], list[str]]:
    """How the layers are renamed, and faults of those that cannot be."""
    groups: dict[object, list[str]] = {}
    for name, site in reading.sites.items():
        groups.setdefault(site.place, []).append(name)
    result: list[Assignment] = []
    faults: list[str] = []
    for names in groups.values():
        try:
            result += _of_group({name: reading.sites[name] for name in names}, layers, find)
        except ValueError as fault:
            faults += [f"{name}: {fault}" for name in names]
    return result, faults


def one_assignment(
    candidates: Sequence[Reading], layers: Mapping[str, LayerOutline], finds: Callable[[Family], Finds]
) -> tuple[Reading, list[Assignment], list[str]]:
    """The new names, if all families that an adapter may be of agree on them.

    Raises:
        MismatchError: they do not.
    """
    found = [(reading, *assign(reading, layers, finds(reading.family))) for reading in candidates]
    sound = [each for each in found if not each[2]] or found[:1]
    if any(set(each[1]) != set(sound[0][1]) for each in sound):
        fitting = titles([reading for reading, _, _ in sound])
        msg = f"the adapter may be of {fitting}, whose names differ here: say which with `family`, or give `base`"
        raise MismatchError(msg)
    return sound[0]


def _of_group(sites: Mapping[str, Site], layers: Mapping[str, LayerOutline], find: Finds) -> list[Assignment]:
    """The new names of layers that are of one module."""
    site = next(iter(sites.values()))
    module, there = site.module, find(site)
    layouts = {each.layout for each in sites.values()}
    if module.is_whole or layouts == {there.layout}:
        return [
            Assignment(
                _present(there.names[each.part if not module.is_whole else 0]),
                (name,),
                transposed=module.transposed and each.layout != there.layout,
            )
            for name, each in sites.items()
        ]
    if len(layouts) > 1 or (len(sites) > 1 and there.layout == "diffusers"):
        msg = f"{' and '.join(sites)} are of one module"
        raise ValueError(msg)
    if there.layout == "diffusers":
        (name,) = sites
        parts = _sized(module.parts, there.sizes)
        return [Assignment(_present(new), (name,), parts, index) for index, new in enumerate(there.names)]
    order = sorted(sites, key=lambda name: sites[name].part)
    present = tuple(sites[name].part for name in order)
    if len(set(present)) < len(present):
        msg = f"{' and '.join(sites)} are of one module"
        raise ValueError(msg)
    if there.parts and any(
        (layers[name].lora_B.shape[0] / _share(module.parts[sites[name].part])).denominator > 1 for name in order
    ):
        return [Assignment(there.parts[sites[name].part], (name,)) for name in order]
    complete = len(present) == len(module.parts)
    sizes = tuple(layers[name].lora_B.shape[0] for name in order) if complete else ()
    return [Assignment(there.names[0], tuple(order), _sized(module.parts, sizes), None, present)]


def _present(name: str) -> str:
    if not name:
        msg = "the base has only some of the parts of its module"
        raise ValueError(msg)
    return name


def _share(part: Part) -> Fraction:
    """A part's share of its module's outputs."""
    return sum((end - begin for begin, end in part.rows), Fraction(0))


def _sized(parts: tuple[Part, ...], sizes: tuple[int, ...]) -> tuple[Part, ...]:
    """The parts with their actual sizes, if those are known and the parts follow one another."""
    if not sizes or any(len(part.rows) > 1 for part in parts):
        return parts
    ends = [Fraction(sum(sizes[:index]), sum(sizes)) for index in range(len(sizes) + 1)]
    return tuple(replace(part, rows=((ends[i], ends[i + 1]),)) for i, part in enumerate(parts))
