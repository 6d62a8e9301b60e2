"""One adapter in another format: checked from headers, then written layer by layer with every scale unchanged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, get_args

from eckart.adapter.adapter import Adapter
from eckart.adapter.outline import AdapterFormat
from eckart.checkpoint import InputFiles, atomic_directory, check_output
from eckart.checkpoint.source import local_paths
from eckart.errors import MismatchError, OptionError
from eckart.formats import output_kind, saved_adapter
from eckart.formats.components import components
from eckart.formats.families.table import FAMILIES
from eckart.formats.model_names import Base, Model
from eckart.formats.peft_config import hub_name_or_absolute_path
from eckart.formats.renaming import Renaming, names_of
from eckart.formats.renaming_steps import faults_in_base, steps_to
from eckart.formats.sources import is_adapter, open_adapter
from eckart.formats.table import format_of
from eckart.operations.card import facts_of, metadata_of, title_of, write_card
from eckart.operations.preview import Match, Preview
from eckart.result import Result, Skipped


@dataclass(frozen=True, repr=False)
class ConvertResult(Result):
    """An adapter in another format.

    Attributes:
        origin: the source's format.
        to: the result's format.
        adapters: the result by component; a single adapter has the key "".
        renamed: (old, new) name of each renamed layer; a fused layer has several names on one side.
        skipped: parts that the result does not contain because they change nothing, and why.
        output: where it was written; None if it was not.
        nbytes: size of the written files, or of the tensors.
    """

    origin: AdapterFormat
    to: AdapterFormat
    adapters: Mapping[str, Adapter]
    renamed: Sequence[tuple[str, str]]
    skipped: Sequence[Skipped]
    output: Path | None
    nbytes: int

    @property
    def adapter(self) -> Adapter:
        """The result if it is a single adapter.

        Raises:
            MismatchError: there is one for each component of a pipeline: use `adapters`.
        """
        if len(self.adapters) > 1:
            msg = f"the result is one adapter for each of {', '.join(self.adapters)}: use .adapters"
            raise MismatchError(msg)
        return next(iter(self.adapters.values()))

    @property
    def layers(self) -> list[Match]:
        """Every layer, in the order of the files."""
        return [replace(match, rank=match.ranks[0]) for match in _matches(self.adapters)]

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer."""
        return [{"name": it.name, "shape": list(it.shape), "rank": it.rank} for it in self.layers]

    def to_json(self) -> dict[str, Any]:
        """The `eckart-convert/2` object."""
        return {
            "format": "eckart-convert/2",
            "from": self.origin,
            "to": self.to,
            "layers": self.rows(),
            "renamed": [list(pair) for pair in self.renamed],
            "skipped": [item.to_json() for item in self.skipped],
            "bytes": self.nbytes,
            "output": None if self.output is None else str(self.output),
        }


@dataclass(frozen=True)
class Conversion:
    """A conversion that was checked from headers; see `ConvertResult` for the attributes."""

    source: Adapter
    to: AdapterFormat
    adapters: Mapping[str, Adapter]
    renamed: Sequence[tuple[str, str]]
    skipped: Sequence[Skipped]
    inputs: Sequence[Path]

    def preview(self) -> Preview:
        """What would be read and written."""
        written = sum(adapter.nbytes for adapter in self.adapters.values())
        return Preview("convert", _matches(self.adapters), self.skipped, self.source.nbytes, written)

    def write(self, output: Path | None = None, *, force: bool = False) -> ConvertResult:
        """Write the result; without `output`, only return it.

        Raises:
            OutputError: `output` exists or cannot be written.
            SourceError: the source changed meanwhile.
        """
        nbytes = sum(adapter.nbytes for adapter in self.adapters.values())
        if output is not None:
            single = next(iter(self.adapters.values()))
            kind = "folder" if len(self.adapters) > 1 else output_kind(single, output)
            check_output(output, nbytes, kind=kind, force=force, inputs=self.inputs)
            self._save(output, force=force)
            nbytes = sum(file.stat().st_size for file in [output, *output.rglob("*")] if file.is_file())
        return ConvertResult(self.source.format, self.to, self.adapters, self.renamed, self.skipped, output, nbytes)

    def _save(self, output: Path, *, force: bool) -> None:
        inputs = InputFiles(self.source.files)
        if len(self.adapters) == 1:
            with saved_adapter(next(iter(self.adapters.values())), output, force=force) as partial:
                if partial.is_dir():
                    self._write_card(partial)
                inputs.check_unchanged()
            return
        with atomic_directory(output, force=force) as folder:
            for part, adapter in self.adapters.items():
                adapter.save(folder / part)
            self._write_card(folder)
            inputs.check_unchanged()

    def _write_card(self, folder: Path) -> None:
        """The card of the result: its license is that of the source."""
        outlines = {part: adapter.outline() for part, adapter in self.adapters.items()}
        first = next(iter(outlines.values()))
        facts = [("Format", f"from {self.source.format} to {self.to}")]
        for part, outline in outlines.items():
            facts += [(f"{part}: {name}" if part else name, value) for name, value in facts_of(outline)]
        source = self.source.files[0].parent if self.source.files else None
        metadata = metadata_of(first, "convert")
        write_card(folder, title_of(first), facts, base=first.base_model, metadata=metadata, source=source)


def convert(
    adapter: Adapter | str | Path,
    to: AdapterFormat,
    *,
    base: Base | None = None,
    family: str | None = None,
    output: str | Path | None = None,
    force: bool = False,
) -> ConvertResult:
    """Convert an adapter to another format, with every scale and update unchanged.

    Factors are rounded (once, in float32) only if parts of several scales become one layer (kohya's qkv of FLUX).

    Args:
        adapter: the adapter, or its SOURCE.
        to: a format of `eckart.formats.table`, such as "peft" or "kohya".
        base: the model: resolves names, and every shape is compared with it.
        family: without `base`, the family of an image or video model, such as flux1, where several fit; of a language
            model the type, where names depend on it: transformers' `model_type`, such as llama.
        output: a folder for PEFT, with one folder per component of a pipeline; for kohya a .safetensors file; for
            diffusers either.
        force: replace an existing result.

    Raises:
        MismatchError: what the format cannot express, and names that cannot be resolved, all in one message.
        OptionError: a format that does not exist, or sources of the wrong kind.
        OutputError: `output` exists or cannot be written.
    """
    plan = plan_conversion(adapter, to, base=base, family=family)
    return plan.write(None if output is None else Path(output), force=force)


def plan_conversion(
    adapter: Adapter | str | Path, to: AdapterFormat, *, base: Base | None = None, family: str | None = None
) -> Conversion:
    """Check a conversion from headers; for layers that kohya fuses, lora_B is read, whose zeros show the parts.

    Errors as of `convert`, except those of the output.
    """
    if to not in get_args(AdapterFormat):
        msg = f"`to` must be one of {', '.join(get_args(AdapterFormat))}, got {to!r}"
        raise OptionError(msg)
    source = open_adapter(adapter)
    families = [FAMILIES[family]] if family in FAMILIES else []
    model = _model_of(base, family)
    is_there = to == source.format and (model is None or to != "peft" or not names_of(to))
    steps = [] if is_there else steps_to(source, to, model=model, families=families)
    before = result = source
    for renaming, form in steps:
        before, result = result, renaming.of(result, format=form)
    faults = [fault for renaming, _ in steps for fault in renaming.faults]
    faults += faults_in_base(source, steps, model, families) if model else []
    targets = _targets(result, to, base)
    subjects = [before] if names_of(to) else targets.values()  # a format's own names say less of a layer
    faults += [fault for subject in subjects for fault in format_of(to).refusals(subject)]
    if faults:
        msg = f"this adapter cannot be converted to {to}"
        raise MismatchError.listing(msg, list(dict.fromkeys(faults)))
    skipped = [item for renaming, _ in steps for item in renaming.skipped]
    inputs = [*source.files, *local_paths(base if isinstance(base, str | Path) else None)]
    return Conversion(source, to, targets, _renamed([renaming for renaming, _ in steps]), skipped, inputs)


def _model_of(base: Base | None, family: str | None) -> Model | None:
    """The model that resolves names: of a base, or of a type; None if neither is given."""
    if isinstance(base, (str, Path)) and is_adapter(base):
        msg = f"{base} is an adapter, not a model: `base` is the model that the adapter was made for"
        raise OptionError(msg)
    if base is not None and family is not None:
        msg = "give `base` or `family`, not both: the base says what its type is"
        raise OptionError(msg)
    if base is not None:
        return Model.of(base)
    return Model.of_type(family) if family and family not in FAMILIES else None


def _targets(adapter: Adapter, to: AdapterFormat, base: Base | None) -> dict[str, Adapter]:
    """The adapters to write: in PEFT's format, one for each component of a pipeline."""
    if to != "peft" or adapter.format == "peft":
        named = str(base) if isinstance(base, str | Path) else None
        return {"": replace(adapter, base_model=hub_name_or_absolute_path(adapter.base_model or named))}
    parts = components(adapter)
    return {"": next(iter(parts.values()))} if len(parts) == 1 else parts


def _matches(adapters: Mapping[str, Adapter]) -> list[Match]:
    return [
        Match(f"{part}.{name}" if part else name, (layer.lora_B.shape[0], prod(layer.lora_A.shape[1:])), (layer.rank,))
        for part, adapter in adapters.items()
        for name, layer in adapter.outline().items()
    ]


def _renamed(steps: Sequence[Renaming]) -> list[tuple[str, str]]:
    """Old and new names of every layer, through all steps."""
    origins: dict[str, tuple[str, ...]] = {}
    for step in steps:
        origins = {move.new: tuple(o for old in move.old for o in origins.get(old, (old,))) for move in step.moves}
    return [(old, new) for new, olds in origins.items() for old in olds if old != new]
