"""Spectra of every matrix of a source: all inputs are checked from headers before the first matrix is read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from eckart.checkpoint import InputFiles, atomic_directory, check_output
from eckart.engine import Execution, open_journal, run_resumable
from eckart.engine.machine import peak_rss_bytes
from eckart.formats.sources import Source
from eckart.operations.analysis.matrix import MatrixAnalysis
from eckart.operations.analysis.plan import plan_analysis
from eckart.operations.analysis.result import Analysis
from eckart.result import Finish


def analyze(
    source: Source,
    base: Source | None = None,
    *,
    full: bool = False,
    target: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    output: str | Path | None = None,
    force: bool = False,
    finish: Finish[Analysis] | None = None,
    execution: Execution = Execution(),
) -> Analysis:
    """Spectra of every matrix of a checkpoint, of the difference of two, or of an adapter.

    Args:
        source: SOURCE text or path (a folder, a `.safetensors` or `.gguf` file, a hub name, a URL, `pkg:NAME`), a state
            dict, a module, or an adapter (also by its folder).
        base: what `source` was fine-tuned from; the difference `source` − `base` is analyzed.
        full: compute every singular value of every matrix; by default a matrix whose short side is over 4096 gets the
            leading 256, with certified limits on the rest.
        target: only these modules, by PEFT's rules or a preset; a string is one pattern; all matrices if empty.
        exclude: not these modules; takes precedence over `target`.
        output: folder to write `analysis.json` and `analysis.csv` to. Until they are complete, finished matrices are
            stored next to it, and an interrupted run resumes from them.
        force: replace an existing `output`.
        finish: called with the folder before it gets its final name and the result, to add files.
        execution: device, workers, seed and progress; by default every core of the CPU, or the GPU if there is one.

    Returns:
        the `Analysis`, matrices in the order of the files.

    Raises:
        SourceError, FileFormatError: a source cannot be read, or changed during the run.
        MismatchError: `source` and `base` are not of one model (all faults together) or are equal, or a pattern
            matches nothing.
        OptionError: the device does not exist, an adapter is given with a base, or as the base.
        NotFiniteError: a matrix contains NaN or Inf.
        OutputError: `output` exists, or cannot be written.
    """
    began = time.monotonic()
    execution.check()
    plan = plan_analysis(source, base, full=full, target=target, exclude=exclude, execution=execution)
    inputs, folder = InputFiles(plan.inputs), None if output is None else Path(output)
    if folder is not None:
        check_output(folder, force=force, inputs=plan.inputs)
    with open_journal(folder, plan.fingerprint, execution) as journal:
        if folder is not None:
            check_output(folder, force=force)  # another process may have written it meanwhile
        records = run_resumable(plan.tasks, stage="Spectra", execution=execution, journal=journal)
        analysis = Analysis(
            kind=plan.kind,
            source=plan.source,
            base=plan.base,
            matrices=[MatrixAnalysis.from_json(records[task.name].facts) for task in plan.tasks],
            skipped=plan.skipped,
            seconds=time.monotonic() - began,
            peak_rss_bytes=peak_rss_bytes(),
        )
        if folder is not None:
            with atomic_directory(folder, force=force) as partial:
                analysis.save(partial)
                if finish is not None:
                    finish(partial, analysis)
                inputs.check_unchanged()
    return analysis
