"""What is analysed: the matrices of a checkpoint, of a difference or of an adapter, checked before any is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eckart.adapter import Adapter, AdapterLayer
from eckart.checkpoint import (
    Checkpoint,
    Layout,
    MatrixView,
    compare_layouts,
    layout,
    select,
)
from eckart.checkpoint.compare import changed
from eckart.engine import Execution, Record, Task
from eckart.engine.fingerprint import fingerprint
from eckart.errors import MismatchError, OptionError
from eckart.formats.sources import Source, name_of, open_adapter_or_checkpoint, open_model
from eckart.operations.analysis.matrix import MatrixAnalysis
from eckart.operations.analysis.result import Kind
from eckart.operations.analysis.work import MatrixWork, dtype_name
from eckart.result import Skipped


@dataclass(frozen=True)
class Subject:
    """The work of one analysis.

    Attributes:
        kind, source, base: as the `Analysis` will say.
        tasks: one a matrix, in the order of the files; each gives its entry of `analysis.json`.
        skipped: every other tensor, and why.
        fingerprint: what the numbers depend on beside the matrix's name.
        inputs: the folders that are read.
    """

    kind: Kind
    source: str
    base: str | None
    tasks: list[Task[Record]]
    skipped: list[Skipped]
    fingerprint: str
    inputs: list[Path | None]


@dataclass(frozen=True)
class Choice:
    """Which matrices, and how much of their spectra.

    Attributes:
        target: patterns by PEFT's rules or presets; every matrix if empty.
        exclude: patterns that win over `target`.
        full: every singular value, of large matrices too.
    """

    target: Sequence[str] = ()
    exclude: Sequence[str] = ()
    full: bool = False

    def of(self, found: Layout) -> tuple[list[MatrixView], list[Skipped]]:
        """What is chosen of a layout and what is not, each tensor in exactly one of the two."""
        chosen = found.matrices
        if self.target or self.exclude:
            chosen = select(found, self.target or [".*"], self.exclude)
        names = {view.name for view in chosen}
        unchosen = [Skipped(view.name, "not targeted") for view in found.matrices if view.name not in names]
        return chosen, [*found.skipped, *unchosen]


def subject(source: Source, base: Source | None, choice: Choice, execution: Execution) -> Subject:
    """Open and check what is to be analysed; of the tensors only as many bytes as show a difference are read.

    Raises:
        SourceError, FileFormatError: a source cannot be read.
        MismatchError: `source` and `base` are not of one model or are equal, or a pattern matches nothing.
        OptionError: an adapter is given together with a base.
    """
    if isinstance(base, Adapter):
        msg = "an adapter cannot be subtracted; give the checkpoint that SOURCE was fine-tuned from as base"
        raise OptionError(msg)
    opened = open_adapter_or_checkpoint(source)
    if isinstance(opened, Adapter):
        return _of_adapter(opened, name_of(source), base, choice)
    return _of_checkpoints(opened, None if base is None else open_model(base), choice, execution)


def _of_checkpoints(tuned: Checkpoint, base: Checkpoint | None, choice: Choice, execution: Execution) -> Subject:
    """The weights of a checkpoint, or its difference from another."""
    if base is not None and (faults := compare_layouts(base, tuned, choice.exclude)):
        msg = f"{tuned.source} is not a fine-tune of {base.source}"
        raise MismatchError.listing(msg, faults)
    views, skipped = choice.of(layout(tuned))
    tensors = dict.fromkeys(view.tensor for view in views)
    if base is not None and not any(changed(base, tuned, tensor) for tensor in tensors):
        msg = (
            f"{tuned.source} and {base.source} are identical in all {len(views)} matrices: there is no update to "
            "analyse; check that SOURCE is the fine-tune and --base what it came from"
        )
        raise MismatchError(msg)
    inputs = [each for each in (tuned, base) if each is not None]
    return Subject(
        kind="weights" if base is None else "delta",
        source=tuned.source,
        base=None if base is None else base.source,
        tasks=[MatrixWork(tuned, base, view, choice.full, execution).task() for view in views],
        skipped=skipped,
        fingerprint=_digest([each.fingerprint() for each in inputs], choice.full, execution.seed),
        inputs=[each.folder for each in inputs],
    )


def _of_adapter(adapter: Adapter, source: str, base: Source | None, choice: Choice) -> Subject:
    """The updates of an adapter, each from its factors."""
    if base is not None:
        msg = f"{source} is an adapter, an update already: analyse it without a base"
        raise OptionError(msg)
    outline = adapter.outline()
    skipped = [Skipped(name, "kept whole by the adapter, not as factors") for name in outline.modules_to_save]
    for name, layer in outline.items():
        if layer.bias is not None:
            skipped.append(Skipped(f"{name}.bias", "bias"))
        if layer.magnitude is not None:
            skipped.append(Skipped(f"{name}.magnitude", "DoRA magnitude: the spectrum is that of the factors"))
    found = Layout([_view(name, layer) for name, layer in outline.items()], skipped)
    views, skipped = choice.of(found)
    tasks = [_adapter_task(view.name, adapter, outline[view.name]) for view in views]
    fingerprint = _digest([adapter.fingerprint()], choice.full, 0)
    return Subject("adapter", source, None, tasks, skipped, fingerprint, [*adapter.files])


def _adapter_task(name: str, adapter: Adapter, layer: AdapterLayer) -> Task[Record]:
    """The exact spectrum of scaling · lora_B · lora_A, which is never multiplied out; `layer` is its outline."""

    def analyze() -> Record:
        update = adapter[name].low_rank()
        found = MatrixAnalysis(name, update.shape, dtype_name(layer.lora_A.dtype), update.spectrum())
        return Record(found.to_json())

    nbytes = layer.lora_A.nbytes + layer.lora_B.nbytes
    return Task(name, nbytes, 8 * nbytes, analyze)


def _view(name: str, layer: AdapterLayer) -> MatrixView:
    """An adapter's layer as the matrix that it updates, so that patterns choose it by the same rules."""
    shape = layer.low_rank().shape
    return MatrixView(name, name, name, layer.kind, shape, 0, False, shape)


def _digest(inputs: Sequence[str], full: bool, seed: int) -> str:
    facts = {"inputs": list(inputs), "full": full, "seed": seed}
    return fingerprint(facts)
