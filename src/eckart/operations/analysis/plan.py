"""Plans an analysis from headers: the matrices of a checkpoint, of the difference of two, or of an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eckart.adapter import Adapter, LayerOutline
from eckart.checkpoint import Checkpoint, Layout, MatrixView, compare_layouts, layout, select
from eckart.checkpoint.compare import changed
from eckart.checkpoint.naming import as_patterns
from eckart.engine import Execution, Record, Task
from eckart.engine.fingerprint import fingerprint
from eckart.errors import MismatchError, OptionError
from eckart.formats.sources import Source, name_of, open_adapter_or_checkpoint, open_model
from eckart.operations.analysis.matrix import MatrixAnalysis
from eckart.operations.analysis.result import Kind
from eckart.operations.analysis.work import matrix_task
from eckart.operations.preview import Match, Preview, stored_as
from eckart.result import Skipped


@dataclass(frozen=True)
class AnalysisPlan:
    """An analysis, checked from headers.

    Attributes:
        kind, source, base: as in the `Analysis`.
        matches: the matrices to analyze.
        tasks: one per matrix, in the order of the files; each returns the `facts` of its `MatrixAnalysis`.
        skipped: every other tensor, and why.
        fingerprint: a digest of everything that the numbers depend on besides the name of the matrix.
        inputs: files that are read, which no output may replace.
    """

    kind: Kind
    source: str
    base: str | None
    matches: list[Match]
    tasks: list[Task[Record]]
    skipped: list[Skipped]
    fingerprint: str
    inputs: list[Path]

    def preview(self) -> Preview:
        """What would be read."""
        return Preview("analyze", self.matches, self.skipped, sum(task.nbytes for task in self.tasks), 0)


def plan_analysis(
    source: Source,
    base: Source | None = None,
    *,
    full: bool,
    target: str | Sequence[str],
    exclude: str | Sequence[str],
    execution: Execution,
) -> AnalysisPlan:
    """Open and check the inputs of an analysis; tensors are read only until a difference is found.

    Arguments and errors as of `analyze`.
    """
    patterns = as_patterns(target), as_patterns(exclude)
    opened = open_adapter_or_checkpoint(source)
    if isinstance(opened, Adapter):
        if base is not None:
            msg = f"{name_of(source)} is an adapter, already an update: analyze it without a base"
            raise OptionError(msg)
        return _of_adapter(opened, name_of(source), patterns, full=full)
    instead = "`base` is the model that SOURCE was fine-tuned from"
    original = None if base is None else open_model(base, instead=instead)
    return _of_checkpoints(opened, original, patterns, full=full, execution=execution)


def _chosen(found: Layout, patterns: tuple[Sequence[str], Sequence[str]]) -> tuple[list[MatrixView], list[Skipped]]:
    """The targeted matrices of a layout, and every other tensor with the reason."""
    target, exclude = patterns
    chosen = select(found, target or [".*"], exclude) if target or exclude else found.matrices
    names = {view.name for view in chosen}
    skipped = [Skipped(view.name, "not targeted") for view in found.matrices if view.name not in names]
    return chosen, [*found.skipped, *skipped]


def _of_checkpoints(
    tuned: Checkpoint,
    base: Checkpoint | None,
    patterns: tuple[Sequence[str], Sequence[str]],
    *,
    full: bool,
    execution: Execution,
) -> AnalysisPlan:
    """The weights of a checkpoint, or its difference from another."""
    if base is not None and (faults := compare_layouts(base, tuned, patterns[1])):
        msg = f"{tuned.source} is not a fine-tune of {base.source}"
        raise MismatchError.listing(msg, faults)
    views, skipped = _chosen(layout(tuned), patterns)
    tensors = dict.fromkeys(view.tensor for view in views)
    if base is not None and not any(changed(base, tuned, tensor) for tensor in tensors):
        msg = (
            f"{tuned.source} and {base.source} are identical in all {len(views)} matrices: there is no update to "
            "analyze; check that SOURCE is the fine-tune and `base` the model that it was made from"
        )
        raise MismatchError(msg)
    inputs = [each for each in (tuned, base) if each is not None]
    return AnalysisPlan(
        kind="weights" if base is None else "delta",
        source=tuned.source,
        base=None if base is None else base.source,
        matches=[Match(view.name, view.shape, (), stored=stored_as(view, *inputs)) for view in views],
        tasks=[matrix_task(tuned, base, view, full=full, execution=execution) for view in views],
        skipped=skipped,
        fingerprint=_digest([each.fingerprint() for each in inputs], full, execution.seed),
        inputs=[file for each in inputs for file in each.files],
    )


def _of_adapter(
    adapter: Adapter, source: str, patterns: tuple[Sequence[str], Sequence[str]], *, full: bool
) -> AnalysisPlan:
    """The updates of an adapter, each from its factors."""
    outline = adapter.outline()
    skipped = [Skipped(name, "saved completely, not as factors") for name in outline.modules_to_save]
    for name, layer in outline.items():
        if layer.bias is not None:
            skipped.append(Skipped(f"{name}.bias", "bias"))
        if layer.magnitude is not None:
            skipped.append(Skipped(f"{name}.magnitude", "DoRA magnitude: the spectrum is that of the factors"))
    found = Layout([_view(name, layer) for name, layer in outline.items()], skipped)
    views, skipped = _chosen(found, patterns)
    return AnalysisPlan(
        kind="adapter",
        source=source,
        base=None,
        matches=[Match(view.name, view.shape, (outline[view.name].rank,)) for view in views],
        tasks=[_adapter_task(view.name, adapter, outline[view.name]) for view in views],
        skipped=skipped,
        fingerprint=_digest([adapter.fingerprint()], full, 0),
        inputs=[*adapter.files],
    )


def _adapter_task(name: str, adapter: Adapter, layer: LayerOutline) -> Task[Record]:
    """The exact spectrum of scaling · lora_B · lora_A from the factors alone; `layer` is its outline."""

    def analyze() -> Record:
        from eckart.operations.rank_change import low_rank_of  # imports torch

        update = low_rank_of(name, adapter[name])
        return Record(MatrixAnalysis(name, update.shape, layer.lora_A.dtype.name, update.spectrum()).facts())

    nbytes = layer.lora_A.nbytes + layer.lora_B.nbytes
    return Task(name, nbytes, 8 * nbytes, analyze)


def _view(name: str, layer: LayerOutline) -> MatrixView:
    """An adapter's layer as the matrix that it updates, so that patterns select it by the same rules."""
    shape = layer.update_shape
    return MatrixView(name, name, name, layer.kind, shape, 0, False, shape)


def _digest(inputs: Sequence[str], full: bool, seed: int) -> str:
    return fingerprint({"inputs": list(inputs), "full": full, "seed": seed})
