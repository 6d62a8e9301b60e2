"""One pass over the matrices of a source: everything checked from headers first, then spectrum by spectrum."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from eckart.checkpoint import atomic_directory, check_output
from eckart.engine import Execution, open_journal, run_resumable
from eckart.engine.machine import peak_rss_bytes
from eckart.operations.analysis.matrix import MatrixAnalysis
from eckart.operations.analysis.result import Analysis
from eckart.operations.analysis.subject import Choice, Source, subject

DEFAULT_EXECUTION = Execution()


def analyze(
    source: Source,
    base: Source | None = None,
    *,
    full: bool = False,
    target: Sequence[str] = (),
    exclude: Sequence[str] = (),
    output: str | Path | None = None,
    force: bool = False,
    execution: Execution = DEFAULT_EXECUTION,
) -> Analysis:
    """Spectra of every matrix of a checkpoint, of the difference of two, or of an adapter.

    Args:
        source: SOURCE text or path (a folder, a `.safetensors` or `.gguf` file, a hub name, `pkg:NAME`), a state
            dict, a module, or an adapter (also by its folder).
        base: what `source` was fine-tuned from; the difference `source` − `base` is analysed.
        full: every singular value of every matrix; otherwise of a matrix whose short side is over 4096 the
            leading 256, with certified limits on the rest.
        target: only these modules, by PEFT's rules or a preset; all matrices if empty.
        exclude: not these modules; wins over `target`.
        output: a folder to write `analysis.json` and `analysis.csv` to. Until they are whole, finished matrices
            are kept beside it, and a killed run goes on from them.
        force: replace an `output` that exists.
        execution: device, workers, seed and progress; by default every core of the CPU, or the GPU where there is one.

    Returns:
        the `Analysis`, matrices in the order of the files.

    Raises:
        SourceError, FileFormatError: a source cannot be read.
        MismatchError: `source` and `base` are not of one model (all faults together) or are equal, or a pattern
            matches nothing.
        OptionError: the device is not there, or an adapter is given together with a base.
        NotFiniteError: a matrix holds NaN or Inf.
        OutputError: `output` exists, or cannot be written.
    """
    began = time.monotonic()
    execution.torch_device()
    found = subject(source, base, Choice(target, exclude, full), execution)
    folder = None if output is None else Path(output)
    if folder is not None:
        check_output(folder, force=force, inputs=found.inputs)
    with open_journal(folder, found.fingerprint, execution) as journal:
        records = run_resumable(found.tasks, stage="Spectra", execution=execution, journal=journal)
        analysis = Analysis(
            kind=found.kind,
            source=found.source,
            base=found.base,
            matrices=[MatrixAnalysis.from_json(records[task.name].facts) for task in found.tasks],
            skipped=found.skipped,
            seconds=time.monotonic() - began,
            peak_rss_bytes=peak_rss_bytes(),
        )
        if folder is not None:
            with atomic_directory(folder, force=force) as partial:
                analysis.save(partial)
    return analysis
