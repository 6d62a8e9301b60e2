"""One pass over the matrices of a source: everything checked from headers first, then spectrum by spectrum."""

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from eckart.analysis.matrix import MatrixAnalysis
from eckart.analysis.result import Analysis
from eckart.analysis.work import MatrixWork
from eckart.checkpoint import (
    Checkpoint,
    LeftOut,
    MatrixView,
    atomic_directory,
    check_output,
    compare_layouts,
    layout,
    open_checkpoint,
    select,
)
from eckart.engine import Journal, Record, Run, Task, run_tasks
from eckart.errors import MismatchError

Source = str | Path | Mapping[str, Tensor] | nn.Module


def analyze(
    source: Source,
    base: Source | None = None,
    *,
    full: bool = False,
    target: Sequence[str] = (),
    exclude: Sequence[str] = (),
    output: str | Path | None = None,
    force: bool = False,
    run: Run | None = None,
) -> Analysis:
    """Spectra of every matrix of a checkpoint, of the difference of two, or of an adapter.

    Args:
        source: SOURCE text or path (a folder, a `.safetensors` or `.gguf` file, a hub name, `pkg:NAME`), a state
            dict, or a module.
        base: what `source` was fine-tuned from; the difference `source` − `base` is analysed.
        full: every singular value of every matrix; otherwise of a matrix whose short side is over 4096 the
            leading 256, with certified limits on the rest.
        target: only these modules, by PEFT's rules or a preset; all matrices if empty.
        exclude: not these modules; wins over `target`.
        output: a folder to write `analysis.json` and `analysis.csv` to. Until they are whole, finished matrices
            are kept beside it, and a killed run goes on from them.
        force: replace an `output` that exists.
        run: device, workers, seed and progress; by default every core of the CPU, or the GPU where there is one.

    Returns:
        the `Analysis`, matrices in the order of the files.

    Raises:
        SourceError, FileFormatError: a source cannot be read.
        MismatchError: `source` and `base` do not belong together or are the same (all faults together), or a
            pattern matches nothing.
        NotFiniteError: a matrix holds NaN or Inf.
        OutputError: `output` exists, or cannot be written.
    """
    started, run = time.monotonic(), run or Run()
    run.torch_device()
    tuned = open_checkpoint(source)
    origin = None if base is None else open_checkpoint(base)
    if output is not None:
        inputs = [each.folder for each in (tuned, origin) if each]
        check_output(Path(output), force=force, inputs=inputs)
    if origin is not None:
        _check_pair(tuned, origin, exclude)
    views, left_out = _chosen(tuned, target, exclude)
    tasks = [MatrixWork(tuned, origin, view, full, run).task() for view in views]
    journal = (
        None if output is None else Journal(Path(output), _fingerprint(tuned, origin, full, run), resume=run.resume)
    )
    matrices = _measured(tasks, journal, run)
    if origin is not None:
        _check_difference(matrices, tuned, origin)
    analysis = Analysis(
        kind="weights" if origin is None else "delta",
        source=tuned.source,
        base=None if origin is None else origin.source,
        matrices=matrices,
        left_out=left_out,
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
    )
    if output is not None and journal is not None:
        with atomic_directory(Path(output), force=force) as folder:
            analysis.save(folder)
        journal.close()
    return analysis


def _measured(tasks: Sequence[Task[MatrixAnalysis]], journal: Journal | None, run: Run) -> list[MatrixAnalysis]:
    """Every task's result, in their order: from the journal where an earlier run left it."""
    found: dict[str, MatrixAnalysis] = {}
    if journal is not None:
        if journal.restarted:
            run.progress.note(f"starting over: {journal.restarted}")
        kept = {task.name: journal.load(task.name) for task in tasks}
        found = {name: MatrixAnalysis.from_json(record.facts) for name, record in kept.items() if record}
    missing = [task for task in tasks if task.name not in found]
    if found:
        run.progress.note(f"going on: {len(found)} of {len(tasks)} matrices were finished earlier")
    for task, matrix in run_tasks(missing, stage="spectra", run=run):
        found[task.name] = matrix
        if journal is not None:
            journal.keep(task.name, Record(matrix.to_json()))
    return [found[task.name] for task in tasks]


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in kibibytes


def _check_pair(tuned: Checkpoint, base: Checkpoint, exclude: Sequence[str]) -> None:
    """Refuse two checkpoints that are one and the same, or not of one model."""
    if tuned.fingerprint() == base.fingerprint():
        msg = f"{tuned.source} and {base.source} are the same files; give the fine-tuned one and its base"
        raise MismatchError(msg)
    faults = compare_layouts(base, tuned, exclude)
    if faults:
        headline = f"{tuned.source} is no fine-tune of {base.source}"
        raise MismatchError.of(headline, faults)


def _check_difference(matrices: Sequence[MatrixAnalysis], tuned: Checkpoint, base: Checkpoint) -> None:
    """Refuse a difference that is zero everywhere."""
    if matrices and all(matrix.spectrum.fro_norm == 0 for matrix in matrices):
        msg = (
            f"all {len(matrices)} matrices of {tuned.source} equal those of {base.source}: nothing was tuned; "
            "check that the right two checkpoints were given"
        )
        raise MismatchError(msg)


def _chosen(tuned: Checkpoint, target: Sequence[str], exclude: Sequence[str]) -> tuple[list[MatrixView], list[LeftOut]]:
    """What to analyse and what not, each tensor in exactly one of the two."""
    found = layout(tuned)
    chosen = select(found, target or [".*"], exclude) if target or exclude else found.matrices
    names = {view.name for view in chosen}
    unselected = [LeftOut(view.name, "not selected") for view in found.matrices if view.name not in names]
    return chosen, [*found.left_out, *unselected]


def _fingerprint(tuned: Checkpoint, base: Checkpoint | None, full: bool, run: Run) -> str:
    """What the numbers of a matrix depend on, beside its name."""
    return " ".join([tuned.fingerprint(), base.fingerprint() if base else "-", str(full), str(run.seed)])
