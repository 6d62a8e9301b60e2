"""Runs the tasks that compute an adapter's layers, writes the adapter, and returns the `AdapterResult`.

Finished layers are stored next to the output until it is complete, so an interrupted run resumes.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.adapter.deferred import Deferred
from eckart.checkpoint import InputFiles, check_output
from eckart.checkpoint.companions import tokenizer_files
from eckart.checkpoint.manifest import MANIFEST
from eckart.checkpoint.naming import is_embedding
from eckart.checkpoint.tying import is_vocabulary
from eckart.engine.fingerprint import fingerprint
from eckart.errors import MismatchError, OutputError
from eckart.formats import load_adapter, output_kind, saved_adapter, unknown_fields
from eckart.formats.peft_tokens import embedding_of
from eckart.operations.adapter_result import AdapterResult, LayerRecord, Refine, rounding_note
from eckart.operations.card import write_adapter_card
from eckart.operations.costs import break_even_note
from eckart.operations.select_layers import parameter_of
from eckart.result import Finish, Skipped

if TYPE_CHECKING:
    from eckart.engine import Execution, Journal, Record, Task

_STAGES = {
    "extract": "Extracting",
    "resize": "Resizing",
    "combine": "Combining",
    "lora": "Converting",
    "correct": "Correcting",
}
Measure = Callable[[Adapter, Sequence[LayerRecord]], list[LayerRecord]]


class AdapterPlan(Protocol):
    """A checked operation that writes an adapter."""

    @property
    def made_by(self) -> str:
        """The operation, such as `extract`."""
        ...

    @property
    def frame(self) -> Adapter:
        """The adapter without its layers, as far as headers show it."""
        ...

    @property
    def inputs(self) -> Sequence[Path]:
        """Files that are read."""
        ...

    def written_bytes(self) -> int:
        """Size of the adapter, at most."""
        ...


@dataclass(frozen=True)
class LayerTasks:
    """The work on an adapter's layers, and everything about the result that is known before it starts.

    Attributes:
        frame: the adapter without its layers.
        tasks: one per layer; each returns a record from `layer_record` or `empty_record`.
        shapes: shape of each layer's update, in the order of the result.
        measure: measures the errors of records again whose factors changed after their task.
        skipped: what is not in the adapter, apart from layers with an empty record.
        guarantee: how much more energy another use of the budget could preserve.
        notes: warnings and advice that were already reported.
        copies: by layer, further modules that get its update because they share its weight.
        tokenizer: the folder whose tokenizer has the tokens of saved embeddings; None for that of the frame's files.
        named: the adapter under the names that it is written with; None if those are its layers'.
    """

    frame: Adapter
    tasks: "Sequence[Task[Record]]"
    shapes: Mapping[str, tuple[int, int]]
    measure: Measure
    skipped: Sequence[Skipped] = ()
    guarantee: str | None = None
    notes: tuple[str, ...] = ()
    copies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tokenizer: Path | None = None
    named: Callable[[Adapter], Adapter] | None = None


@dataclass(frozen=True)
class LayerWork:
    """An operation on an adapter's layers that is ready to start.

    Attributes:
        facts: everything that its results depend on, as JSON.
        tasks: creates the tasks, for which it may compute something itself and store that in the journal.
    """

    facts: Mapping[str, Any]
    tasks: "Callable[[Journal | None], LayerTasks]"


def layer_record(
    layer: AdapterLayer,
    *,
    error: float,
    error_lower_bound: float,
    fro_norm: float,
    lower_bounds: Sequence[float] = (),
    signal_rank: int | None = None,
) -> "Record":
    """The record of a computed layer; the rest as of `LayerRecord`."""
    from eckart.engine import Record

    fields = {"alpha": layer.alpha, "rslora": layer.rslora, "kind": layer.kind}
    quality = {"rank": layer.rank, "error": error, "error_lower_bound": error_lower_bound, "fro_norm": fro_norm}
    quality |= {"lower_bounds": list(lower_bounds), "signal_rank": signal_rank}
    return Record({"layer": fields, "quality": quality}, layer.tensors())


def empty_record(
    reason: str, fro_norm: float, *, spare: AdapterLayer | None = None, skipped_name: str | None = None
) -> "Record":
    """The record of a layer without factors; if its update is not zero it counts as rank 0.

    Args:
        reason: why it has none.
        fro_norm: norm of its update.
        spare: for an expert whose update is zero, the layer to write if another expert of its parameter has one.
        skipped_name: name in the list of skipped items; by default that of the layer.
    """
    from eckart.engine import Record

    facts = {"reason": reason} | ({"skipped_name": skipped_name} if skipped_name else {})
    if spare is not None:
        record = layer_record(spare, error=0.0, error_lower_bound=0.0, fro_norm=fro_norm)
        return Record(record.facts | facts, record.tensors)
    quality = {"rank": 0, "error": 1.0, "error_lower_bound": 1.0, "fro_norm": fro_norm}
    return Record(facts | {"quality": quality})


@dataclass(frozen=True)
class AdapterWriter:
    """Where an adapter is written and how its layers are computed.

    Attributes:
        made_by: the operation.
        output: the file or folder to write; None leaves the adapter in memory.
        execution: workers, memory, progress, resume.
        force: replace an existing output.
        inputs: the files that are read.
        refine: changes the adapter before it is written.
        finish: adds files to the output.
    """

    made_by: str
    output: Path | None
    execution: "Execution"
    force: bool
    inputs: InputFiles
    refine: Refine | None = None
    finish: Finish[AdapterResult] | None = None
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def checked(
        cls,
        plan: AdapterPlan,
        output: str | Path | None,
        execution: "Execution | None",
        *,
        force: bool,
        refine: Refine | None = None,
        finish: Finish[AdapterResult] | None = None,
    ) -> "AdapterWriter":
        """A writer for a plan, after checking its output and execution options.

        Raises:
            OutputError: the output cannot be written; with all faults.
            OptionError: the device or the number of workers is not available.
        """
        path = Path(output) if output is not None else None
        if path is not None:
            kind = output_kind(plan.frame, path)
            check_output(path, plan.written_bytes(), kind=kind, force=force, inputs=plan.inputs)
        from eckart.engine import Execution

        execution = execution or Execution()
        execution.check()
        return cls(plan.made_by, path, execution, force, InputFiles(plan.inputs), refine, finish)

    def write(self, ready: LayerWork) -> AdapterResult:
        """Create and run the tasks, and assemble and write the adapter.

        Raises:
            MismatchError: no layer is left.
            SourceError: an input changed during the run.
        """
        from eckart.engine import open_journal, run_resumable

        with open_journal(self.output, fingerprint(ready.facts), self.execution) as journal:
            if self.output is not None:
                check_output(self.output, force=self.force)  # another process may have written it meanwhile
            work, stage = ready.tasks(journal), _STAGES[self.made_by]
            records = run_resumable(work.tasks, stage=stage, execution=self.execution, journal=journal)
            records = {name: records[name] for name in work.shapes}
            written, dropped = _split(records)
            if not written:
                msg = f"{self.made_by}: no layer is left, so there is no adapter to write"
                raise MismatchError.listing(msg, [f"{item.name}: {item.reason}" for item in dropped])
            layers = [
                LayerRecord(name, work.shapes[name], **record.facts["quality"])
                for name, record in records.items()
                if name in written or record.facts["quality"]["fro_norm"]
            ]
            adapter = replace(work.frame, layers=_layers(written, work, journal), files=())
            if self.refine is not None and (refined := self.refine(adapter)) is not adapter:
                left_out = [name for name in adapter if name not in refined]
                dropped += [Skipped(name, "no rank within the budget") for name in left_out]
                adapter, layers = refined, work.measure(refined, layers)
            if work.named is not None:
                adapter = work.named(adapter)
            del records, written  # they would keep every stored file mapped in memory
            skipped, notes = [*work.skipped, *dropped, *unknown_fields(work.frame)], self._notes(work, layers)

            def result(adapter: Adapter, nbytes: int) -> AdapterResult:
                seconds = time.monotonic() - self.began
                return AdapterResult(
                    self.made_by, adapter, layers, skipped, self.output, nbytes, seconds, work.guarantee, notes
                )

            if self.output is None:
                self.inputs.check_unchanged()
                return result(adapter, adapter.nbytes)
            with saved_adapter(adapter, self.output, force=self.force) as partial:
                saved = load_adapter(partial)
                layers = _measured_as_saved(work, layers, adapter, saved)
                written_result = result(saved, sum(file.stat().st_size for file in _files(partial)))
                if partial.is_dir():
                    _copy_tokenizer(work, partial)
                    write_adapter_card(partial, written_result, self.inputs.folder)
                if self.finish is not None:
                    self.finish(partial, written_result)
                self.inputs.check_unchanged()
            return replace(written_result, adapter=load_adapter(self.output))

    def _notes(self, work: LayerTasks, layers: Sequence[LayerRecord]) -> tuple[str, ...]:
        """All notes; ranks above break-even are reported now unless they were before the work."""
        if self.made_by == "extract" and (rounding := rounding_note(layers)):
            self.execution.progress.note(rounding)
            work = replace(work, notes=(*work.notes, rounding))
        note = break_even_note((layer.shape, layer.rank) for layer in layers)
        if note is None or any("break-even" in earlier for earlier in work.notes):
            return work.notes
        self.execution.progress.note(note)
        return (*work.notes, note)


def _copy_tokenizer(work: LayerTasks, output: Path) -> None:
    """Add the tokenizer of an adapter that saves embeddings or rows of them, which may be those of new tokens."""
    folder = work.tokenizer or next((file.parent for file in work.frame.files), None)
    if folder and any(is_vocabulary(embedding_of(name)) for name in work.frame.modules_to_save):
        for file in tokenizer_files(folder):
            shutil.copyfile(file, output / file.name)


def _measured_as_saved(
    work: LayerTasks, layers: list[LayerRecord], adapter: Adapter, saved: Adapter
) -> list[LayerRecord]:
    """The records with the errors of the factors as saved: a format may store a part of a scale in lora_B."""
    before, after = adapter.outline(), saved.outline()
    moved = {name for name in after if name in before and after[name].scaling != before[name].scaling}
    if not moved:
        return layers
    again = {record.name: record for record in work.measure(saved, [each for each in layers if each.name in moved])}
    return [again.get(record.name, record) for record in layers]


def _split(records: "Mapping[str, Record]") -> "tuple[dict[str, Record], list[Skipped]]":
    """The records of layers to write, and the skipped ones; the experts of a parameter are written together."""
    parameters = {parameter_of(name) for name, record in records.items() if "reason" not in record.facts}
    written = {name: record for name, record in records.items() if parameter_of(name) in parameters}
    dropped = [
        Skipped(record.facts.get("skipped_name", name), record.facts["reason"])
        for name, record in records.items()
        if name not in written
    ]
    return written, dropped


def _layers(written: "Mapping[str, Record]", work: LayerTasks, journal: "Journal | None") -> Mapping[str, AdapterLayer]:
    """The layers of the records and of modules that share their weights; read from the journal if there is one."""
    owners = {module: name for name in written for module in (name, *work.copies.get(name, ()))}

    def read(module: str, record: "Record | None") -> AdapterLayer:
        if record is None:
            msg = f"{owners[module]}: its stored result is missing or damaged; run the same command again"
            raise OutputError(msg)
        layer = AdapterLayer(**record.tensors, **record.facts["layer"])
        return layer if owners[module] == module else _tied_copy(layer, module)

    layers = {module: read(module, written[owner]) for module, owner in owners.items()}
    if journal is None:
        return layers
    outlines = {module: layer.outline() for module, layer in layers.items()}
    return Deferred(outlines, lambda module: read(module, journal.load(owners[module])))


def _tied_copy(layer: AdapterLayer, module: str) -> AdapterLayer:
    """The same update for a module that shares the weight of the layer's: an output layer, or another embedding."""
    if layer.kind == "embedding" and not is_embedding(module):
        return AdapterLayer(layer.lora_B.T.contiguous(), layer.lora_A.T.contiguous(), layer.alpha)
    return replace(layer, bias=None)


def _files(output: Path) -> list[Path]:
    return (
        [file for file in output.iterdir() if file.is_file() and file.name != MANIFEST] if output.is_dir() else [output]
    )
