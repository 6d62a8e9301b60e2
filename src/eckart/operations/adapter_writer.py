"""An adapter made layer by layer: worked on in parallel, kept beside the output, written, and reported."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.adapter.deferred import Deferred
from eckart.checkpoint import check_output
from eckart.engine import Execution, Journal, Record, Task, open_journal, run_resumable
from eckart.engine.fingerprint import fingerprint
from eckart.errors import MismatchError, OutputError
from eckart.formats import check_name, load_adapter, unknown_fields
from eckart.operations.adapter_result import AdapterResult, LayerRecord
from eckart.operations.ranks import parameter_of
from eckart.result import Skipped


def record_of(layer: AdapterLayer, *, error: float, error_lower_bound: float, fro_norm: float) -> Record:
    """What is kept of a layer that was made."""
    told = {"alpha": layer.alpha, "rslora": layer.rslora, "kind": layer.kind}
    kept = {"rank": layer.rank, "error": error, "error_lower_bound": error_lower_bound, "fro_norm": fro_norm}
    return Record({"layer": told, "kept": kept}, layer.tensors())


def record_of_none(reason: str, fro_norm: float, spare: AdapterLayer | None = None) -> Record:
    """What is kept of a layer that is left out; one whose update was not zero counts as rank 0.

    Args:
        reason: to leave it out.
        fro_norm: of its update.
        spare: of an expert whose update is zero: what it is written as where another expert of its parameter stays.
    """
    if spare is not None:
        record = record_of(spare, error=0.0, error_lower_bound=0.0, fro_norm=fro_norm)
        return Record(record.facts | {"reason": reason}, record.tensors)
    kept = {"rank": 0, "error": 1.0, "error_lower_bound": 1.0, "fro_norm": fro_norm}
    return Record({"reason": reason, "kept": kept})


@dataclass(frozen=True)
class AdapterWriter:
    """Where an adapter goes, and all of it but its layers.

    Attributes:
        made_by: the command.
        frame: an adapter whose layers are replaced by those made.
        output: where to write it; None keeps it in memory.
        execution: workers, memory, progress, resume.
        force: replace an existing output.
        refine: changes the adapter and its records before it is written.
    """

    made_by: str
    frame: Adapter
    output: Path | None
    execution: Execution
    force: bool
    refine: Callable[[Adapter, list[LayerRecord]], tuple[Adapter, list[LayerRecord]]] | None = None

    def check(self, inputs: Sequence[Path | None], needed_bytes: int) -> None:
        """Refuse an output that cannot be written, and a run that cannot be had.

        Raises:
            OutputError: with all faults.
            OptionError: too few workers.
        """
        self.execution.check()
        if self.output is not None:
            check_name(self.frame, self.output)
            check_output(self.output, needed_bytes, force=self.force, inputs=inputs)

    def make(
        self,
        tasks: Sequence[Task[Record]],
        shapes: Mapping[str, tuple[int, int]],
        facts: Mapping[str, Any],
        *,
        skipped: Sequence[Skipped] = (),
        guarantee: str | None = None,
        began: float,
    ) -> AdapterResult:
        """Do the tasks, each of which gives the record of one layer, and assemble and write their adapter.

        Args:
            tasks: one a layer.
            shapes: of the layers' updates, in the order of the result.
            facts: whatever the records depend on, as JSON.
            skipped: what the adapter does not hold, apart from the layers whose record says so.
            guarantee: what is proved of a shared budget.
            began: when the work did, by the monotonic clock.

        Raises:
            MismatchError: no layer is left.
        """
        digest = fingerprint(facts)
        with open_journal(self.output, digest, self.execution) as journal:
            records = run_resumable(tasks, stage=self.made_by.capitalize(), execution=self.execution, journal=journal)
            records = {name: records[name] for name in shapes}
            stay = {parameter_of(name) for name, record in records.items() if "reason" not in record.facts}
            dropped = [
                Skipped(name, record.facts["reason"])
                for name, record in records.items()
                if parameter_of(name) not in stay
            ]
            if not stay:
                msg = f"{self.made_by}: no layer is left, so there is no adapter to write"
                raise MismatchError.listing(msg, [f"{item.name}: {item.reason}" for item in dropped])
            made = {name: _layer(record) for name, record in records.items() if parameter_of(name) in stay}
            told = [
                LayerRecord(name, shapes[name], **record.facts["kept"])
                for name, record in records.items()
                if name in made or record.facts["kept"]["fro_norm"]
            ]
            adapter = replace(self.frame, layers=_kept(made, journal) if journal else made, files=())
            if self.refine is not None:
                adapter, told = self.refine(adapter, told)
            del records, made  # which would keep every file that is read in memory
            nbytes = adapter.nbytes
            if self.output is not None:
                adapter.save(self.output, force=self.force)
                adapter = load_adapter(self.output)
                nbytes = sum(file.stat().st_size for file in _files(self.output))
        seconds = time.monotonic() - began
        everything = [*skipped, *dropped, *unknown_fields(self.frame)]
        return AdapterResult(self.made_by, adapter, told, everything, self.output, nbytes, seconds, guarantee)


def _layer(record: Record) -> AdapterLayer:
    return AdapterLayer(**record.tensors, **record.facts["layer"])


def _kept(made: Mapping[str, AdapterLayer], journal: Journal) -> Mapping[str, AdapterLayer]:
    """The layers read from the journal when they are looked up."""

    def read(name: str) -> AdapterLayer:
        record = journal.load(name)
        if record is None:
            msg = f"{journal.folder}: {name} is gone or damaged; run the same command again"
            raise OutputError(msg)
        return _layer(record)

    return Deferred(dict(Adapter(made).outline().layers), read)


def _files(output: Path) -> list[Path]:
    return [file for file in output.iterdir() if file.is_file()] if output.is_dir() else [output]
