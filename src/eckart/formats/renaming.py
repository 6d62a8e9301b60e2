"""From kohya's flattened names to a model's own module names and back: by the model, or by what diffusers knows.

Underscores cannot be turned back by themselves: `to_out_0` may be `to_out.0` or `to.out.0`. A model's names are
flattened and compared; without one, diffusers' converters know Stable Diffusion and FLUX.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.adapter.deferred import Deferred
from eckart.checkpoint import MatrixView
from eckart.errors import MismatchError
from eckart.formats.components import components
from eckart.formats.fused import cut_out, cuts_of, fuse, is_whole
from eckart.formats.model_names import Base, Model, flattened
from eckart.formats.pipeline_names import Part, Table, kohya_names, parts_of
from eckart.result import Skipped


@dataclass(frozen=True)
class Move:
    """One layer of a renamed adapter: its name, the layers that it is made of, and how."""

    new: str
    old: tuple[str, ...]
    make: Callable[..., AdapterLayer]


@dataclass(frozen=True)
class Renaming:
    """How the layers of an adapter get other names.

    Attributes:
        moves: every layer that comes of it.
        faults: what stands in the way.
        skipped: parts of fused layers that are left as they are.
        is_pipeline: whether the names begin with a pipeline's components.
    """

    moves: Sequence[Move]
    faults: Sequence[str]
    skipped: Sequence[Skipped] = ()
    is_pipeline: bool = False

    def of(self, adapter: Adapter, **changes: object) -> Adapter:
        """The adapter under its new names; a layer is made when it is looked up, in the outline from shapes alone."""
        before = adapter.outline()
        places = {move.new: move for move in self.moves}
        outlines = {new: move.make(*(before[name] for name in move.old)) for new, move in places.items()}
        layers = Deferred(outlines, lambda new: places[new].make(*(adapter[name] for name in places[new].old)))
        return replace(adapter, layers=layers, **changes)


def named(adapter: Adapter, base: Base) -> Adapter:
    """An adapter in kohya's or diffusers' names under the module names of its base.

    A base that is a whole pipeline has its components in front, and the adapter stays in diffusers' format; under the
    names of a single model it is in PEFT's.

    Raises:
        MismatchError: names that the base does not tell or that mean several modules, or shapes that are not its own.
        MissingExtraError: names that only diffusers tells, when it is not installed.
    """
    model = Model.of(base)
    faults: list[str] = []
    if adapter.format == "kohya":
        renaming = to_modules(adapter, model)
        faults += renaming.faults
        adapter = renaming.of(adapter, config={}, format="diffusers" if model.is_pipeline else "peft")
    faults += model.misfits(adapter.outline())
    if faults:
        msg = f"the adapter does not fit {model.source}"
        raise MismatchError.listing(msg, faults)
    return components(adapter)[model.component] if model.component else adapter


def rename_for_base(base: Base, adapter: Adapter) -> Adapter:
    """An adapter in kohya's or diffusers' form under the module names of its base; one of PEFT's has them.

    Raises:
        MismatchError: names that `base` does not tell, or shapes that are not its own.
    """
    return adapter if adapter.format == "peft" else named(adapter, base)


def to_modules(adapter: Adapter, model: Model | None) -> Renaming:
    """From kohya's names to module names. Of fused layers lora_B is read, for the zeros that tell the parts.

    Raises:
        MissingExtraError: `model` does not tell every name, and diffusers is not installed.
    """
    candidates = model.modules(adapter) if model else {}
    table: Table = {name: (Part(found[0]),) for name in adapter if len(found := candidates.get(name, ())) == 1}
    faults = [
        f"{name}: may be {' or '.join(candidates[name])}" for name in adapter if len(candidates.get(name, ())) > 1
    ]
    rest = [name for name in adapter if name not in candidates]
    if rest and (model is None or model.is_pipeline):
        table |= parts_of(rest)
    unknown = "neither Stable Diffusion nor FLUX has such a layer; give its model as `base`"
    where = f"{model.source} has no module of this name" if model else unknown
    faults += [f"{name}: {where}" for name in rest if name not in table]
    moves: list[Move] = []
    skipped = []
    for name in adapter:
        if name in table and is_whole(table[name]):
            module = table[name][0].module
            moves.append(Move(module, (name,), partial(_shaped, view=model.views.get(module) if model else None)))
        elif name in table:
            try:
                cuts = cuts_of(adapter[name], table[name])
            except ValueError as fault:
                faults.append(f"{name}: {fault}")
                continue
            for part, cut in zip(table[name], cuts, strict=True):
                if cut.columns:
                    moves.append(Move(part.module, (name,), partial(cut_out, cut=cut)))
                else:
                    skipped.append(Skipped(part.module, "its part of a fused layer is zero"))
    faults += _twice([(move.new, move.old[0]) for move in moves])
    return Renaming(moves, faults, skipped, is_pipeline=model.is_pipeline if model else True)


def to_kohya(adapter: Adapter) -> Renaming:
    """From module names to kohya's: sd-scripts' for a pipeline, those of a text encoder for a language model.

    A language model is `lora_te_` and the name in its body, without the `model.` of its head: so sd-scripts names text
    encoders that are one, and ComfyUI finds them.

    Raises:
        MissingExtraError: the adapter is of a pipeline whose names diffusers tells, and it is not installed.
    """
    if adapter.format == "diffusers":
        table, faults = kohya_names(adapter), []
        known = {part.module for parts in table.values() for part in parts}
        unknown = "neither Stable Diffusion nor FLUX, whose kohya names are known, has such a module"
        faults += [f"{name}: {unknown}" for name in adapter if name not in known]
    else:
        pairs = [(f"lora_te_{flattened(name.removeprefix('model.'))}", name) for name in adapter]
        table, faults = {flat: (Part(name),) for flat, name in pairs}, _twice(pairs)
    outlines = adapter.outline()
    moves = []
    for flat, parts in table.items():
        old = tuple(part.module for part in parts if part.module in adapter)
        make = partial(_joined, parts=parts, present=[part.module in adapter for part in parts])
        try:
            make(*(outlines[name] for name in old))
            moves.append(Move(flat, old, make))
        except ValueError as fault:
            faults.append(f"{flat}: {fault}")
    return Renaming(moves, faults)


def to_component(adapter: Adapter, part: str) -> Renaming:
    """From a component's own module names to those of the pipeline."""
    return Renaming([Move(f"{part}.{name}", (name,), _shaped) for name in adapter], [], is_pipeline=True)


def _twice(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Faults for new names that come of several old ones."""
    found: dict[str, list[str]] = {}
    for new, old in pairs:
        found.setdefault(new, []).append(old)
    return [f"{new}: so {' and '.join(old)} would both be called" for new, old in found.items() if len(old) > 1]


def _shaped(layer: AdapterLayer, view: MatrixView | None = None) -> AdapterLayer:
    """The layer as its module wants it: kohya tells neither a Conv1D nor a 1×1 convolution from a linear layer."""
    if view is None:
        return layer
    A, B, dimensions = layer.lora_A, layer.lora_B, len(view.tensor_shape)
    if view.kind == "conv1d":
        return replace(layer, kind="conv1d")
    if dimensions == 2 and A.ndim > 2 and A[0].numel() == A.shape[1]:
        return replace(layer, lora_A=A.flatten(1), lora_B=B.flatten(1), kind="linear")
    if dimensions > 2 and A.ndim == 2 and prod(view.tensor_shape[2:]) == 1:
        ones = [1] * (dimensions - 2)
        return replace(layer, lora_A=A.reshape(*A.shape, *ones), lora_B=B.reshape(*B.shape, *ones), kind="conv")
    return layer


def _joined(*layers: AdapterLayer, parts: Sequence[Part], present: Sequence[bool]) -> AdapterLayer:
    if is_whole(parts):
        return replace(layers[0], alpha=layers[0].scaling * layers[0].rank, rslora=False)
    given = iter(layers)
    return fuse([next(given) if here else None for here in present], parts)
