"""A family of image or video models: its modules under their original names and under those of diffusers.

A table row is a module of the original code, and the module or modules of diffusers that have its rows. Names are
templates: `{}` is the number of a block. A number that a template states, as in `mlp.0`, must be that one.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import Literal

Layout = Literal["original", "diffusers"]
"""Whose names modules have: those of the model's own code, or those of its class in diffusers."""
BOTH: tuple[Layout, ...] = ("original", "diffusers")
Rows = tuple[tuple[Fraction, Fraction], ...]
WHOLE: Rows = ((Fraction(0), Fraction(1)),)
_NUMBER = re.compile(r"(?<![^._])(?:\d+|\{\})(?![^._])")


@dataclass(frozen=True)
class Part:
    """A module of diffusers, and its share of the original module's outputs, in its own order."""

    module: str
    rows: Rows = WHOLE


@dataclass(frozen=True)
class Module:
    """One row of a table.

    Attributes:
        originals: the original name, and others that are read as well.
        parts: the modules of diffusers.
        ratio: outputs per input of the original module, where that distinguishes families.
        transposed: whether the original is a bare parameter that stores (inputs, outputs).
        written: whether files under original names have this module; otherwise only its parts are converted to them.
    """

    originals: tuple[str, ...]
    parts: tuple[Part, ...]
    ratio: Fraction | None = None
    written: bool = True
    transposed: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the module is one in both layouts, with the same rows."""
        return len(self.parts) == 1 and self.parts[0].rows == WHOLE

    @property
    def is_same(self) -> bool:
        """Whether it has one name in both layouts."""
        return self.is_whole and self.originals == (self.parts[0].module,)

    def names(self, layout: Layout) -> tuple[str, ...]:
        """The names of the module, or of its parts."""
        return self.originals if layout == "original" else tuple(part.module for part in self.parts)


def module(
    original: str,
    *diffusers: str,
    shares: Sequence[int] = (),
    ratio: Fraction | int | None = None,
    also: Sequence[str] = (),
    written: bool = True,
) -> Module:
    """A row of a table; its parts have equal shares of the outputs unless `shares` states others."""
    sizes = shares or [1] * len(diffusers)
    ends = [Fraction(sum(sizes[:index]), sum(sizes)) for index in range(len(sizes) + 1)]
    rows = [(span,) for span in pairwise(ends)]
    parts = tuple(Part(name, span) for name, span in zip(diffusers, rows, strict=True))
    return Module((original, *also), parts, None if ratio is None else Fraction(ratio), written)


def swapped(original: str, diffusers: str, *, ratio: int | None = None) -> Module:
    """A modulation whose halves, shift and scale, are in the other order in diffusers."""
    half = Fraction(1, 2)
    part = Part(diffusers, ((half, Fraction(1)), (Fraction(0), half)))
    return Module((original,), (part,), None if ratio is None else Fraction(ratio))


def modules(names: Mapping[str, str]) -> tuple[Module, ...]:
    """Rows of modules that differ in their names alone, by their original names."""
    return tuple(module(original, diffusers) for original, diffusers in names.items())


def same(*names: str) -> tuple[Module, ...]:
    """Rows of modules that have one name."""
    return tuple(module(name, name) for name in names)


@dataclass(frozen=True)
class Site:
    """What a name means: a module of a component in one of the layouts.

    Attributes:
        component: name of the component.
        module: row of its table.
        numbers: numbers of the blocks.
        layout: layout of the name.
        part: index of the part that the name means in diffusers' layout.
    """

    component: str
    module: Module
    numbers: tuple[int, ...]
    layout: Layout
    part: int = 0

    @property
    def place(self) -> tuple[str, Module, tuple[int, ...]]:
        """The module, whichever layout names it."""
        return self.component, self.module, self.numbers

    def names(self, layout: Layout) -> tuple[str, ...]:
        """The names without a prefix of the module, or of each of its parts, in a layout."""
        names = self.module.names(layout)
        return tuple(name.format(*self.numbers) for name in (names if layout == "diffusers" else names[:1]))

    def fits(self, outputs: int, inputs: int) -> bool:
        """Whether a shape is possible for the module."""
        if self.module.ratio is None:
            return True
        rows = self.module.parts[self.part].rows if self.layout == "diffusers" else WHOLE
        share = sum((end - begin for begin, end in rows), Fraction(0))
        return Fraction(outputs, max(inputs, 1)) == self.module.ratio * share


@dataclass(frozen=True)
class Component:
    """A model of a pipeline.

    Attributes:
        name: its folder in a pipeline.
        modules: its table.
        dotted: prefixes of its modules' names and the layouts after them; the first is ComfyUI's.
        flat: the same for names with `_` in place of dots; the first is that of kohya's trainers.
        optional: a beginning of names that some files lack.
    """

    name: str
    modules: tuple[Module, ...]
    dotted: Mapping[str, tuple[Layout, ...]] = field(default_factory=dict)
    flat: Mapping[str, tuple[Layout, ...]] = field(default_factory=dict)
    optional: str = ""

    @cached_property
    def is_same(self) -> bool:
        """Whether both layouts have the same names, so that those outside the table need no renaming either."""
        return all(row.is_same for row in self.modules)

    def sites(self, inner: str, layouts: Iterable[Layout], *, flat: bool = False) -> Iterator[Site]:
        """What a name without its prefix may mean."""
        form, numbers = _general(inner)
        for layout in layouts:
            for row, part, expected in self._index[layout, flat].get(form, ()):
                if all(other in (None, number) for number, other in zip(numbers, expected, strict=True)):
                    free = [number for number, other in zip(numbers, expected, strict=True) if other is None]
                    yield Site(self.name, row, tuple(int(number or 0) for number in free), layout, part)
        if self.optional and not inner.startswith(_spelled(self.optional, flat=flat)):
            yield from self.sites(_spelled(self.optional, flat=flat) + inner, layouts, flat=flat)

    @cached_property
    def _index(self) -> dict[tuple[Layout, bool], dict[str, list[tuple[Module, int, list[int | None]]]]]:
        """Rows by names with every number left open, each with the numbers that the template states."""
        index: dict[tuple[Layout, bool], dict[str, list[tuple[Module, int, list[int | None]]]]] = {}
        for layout in BOTH:
            for flat in (False, True):
                forms = index.setdefault((layout, flat), {})
                for row in self.modules if layout == "original" else filter(_is_written, self.modules):
                    for position, name in enumerate(row.names(layout)):
                        form, numbers = _general(_spelled(name, flat=flat))
                        part = position if layout == "diffusers" else 0
                        forms.setdefault(form, []).append((row, part, numbers))
        return index


def denoiser(
    name: str, table: Iterable[Module], *, kohya: tuple[Layout, ...] = ("original",), prefix: str = "diffusion_model."
) -> Component:
    """The model that a pipeline runs at every step.

    Args:
        name: its folder in a pipeline.
        table: its modules.
        kohya: the layouts of flat names, the written one first.
        prefix: ComfyUI's prefix; "" if its files cannot name this model.
    """
    own: dict[str, tuple[Layout, ...]] = {f"{name}.": ("diffusers", "original")}
    if not prefix:
        return Component(name, tuple(table), own)
    dotted: dict[str, tuple[Layout, ...]] = {prefix: BOTH, f"model.{prefix}": BOTH, **own, "base_model.model.": BOTH}
    flat: dict[str, tuple[Layout, ...]] = {
        "lora_unet_": kohya,
        "lora_transformer_": ("diffusers",),
        "lycoris_": ("diffusers", "original"),
    }
    return Component(name, tuple(table), dotted, flat)


@dataclass(frozen=True)
class Family:
    """A family of models that share their modules' names.

    Attributes:
        name: what `--family` calls it.
        title: its name as its authors write it.
        components: its models, the denoiser first.
        classes: classes of the denoiser in diffusers.
        depths: numbers of blocks of the published models, by the beginning of their names in diffusers.
    """

    name: str
    title: str
    components: tuple[Component, ...]
    classes: tuple[str, ...]
    depths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def component(self, name: str) -> Component:
        """One of the components by its name."""
        return next(part for part in self.components if part.name == name)

    def sites(self, name: str) -> list[Site]:
        """What the name of a module in a file may mean, each place once."""
        found: dict[tuple[object, ...], Site] = {}
        for part, inner, layouts, flat in self._readings(name):
            for site in part.sites(inner, layouts, flat=flat):
                key = None if site.module.is_whole or site.layout == "original" else site.part
                found.setdefault((site.place, key), site)
        return list(found.values())

    def outside(self, name: str) -> Site | None:
        """A module outside the tables, of a component whose names are the same in both layouts."""
        for part, inner, _, flat in self._readings(name):
            if not flat and part.is_same:
                return Site(part.name, module(inner, inner), (), "diffusers")
        return None

    def _readings(self, name: str) -> Iterator[tuple[Component, str, tuple[Layout, ...], bool]]:
        """The components that a name may belong to, by its prefix, and the rest of the name."""
        read = False
        for part in self.components:
            prefixes = [(prefix, layouts, True) for prefix, layouts in part.flat.items() if "." not in name]
            prefixes += [(prefix, layouts, False) for prefix, layouts in part.dotted.items()]
            for prefix, layouts, flat in prefixes:
                if name.startswith(prefix):
                    read = True
                    yield part, name.removeprefix(prefix), layouts, flat
        if not read and not _is_foreign(name):
            yield self.components[0], name, BOTH, False


_FOREIGN = ("lora_te", "text_encoder", "cond_stage_model.", "conditioner.", "first_stage_model.", "vae.")


def _is_foreign(name: str) -> bool:
    """Whether a name without a prefix of this family says that it is of another model than the denoiser."""
    return name.startswith(_FOREIGN)


def _is_written(row: Module) -> bool:
    return row.written


def _general(name: str) -> tuple[str, list[int | None]]:
    """A name or template with every number left open, and the numbers; None for those that a template leaves open."""
    numbers = [None if text == "{}" else int(text) for text in _NUMBER.findall(name)]
    return _NUMBER.sub("{}", name), numbers


def _spelled(name: str, *, flat: bool) -> str:
    return name.replace(".", "_") if flat else name
