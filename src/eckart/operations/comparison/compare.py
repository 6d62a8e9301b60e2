"""Compares two adapters or two checkpoints, or checks whether a checkpoint is a base with an adapter merged."""

from __future__ import annotations

from collections.abc import Sequence

from eckart.adapter.adapter import Adapter
from eckart.checkpoint import Checkpoint
from eckart.checkpoint.naming import as_patterns
from eckart.engine import Execution
from eckart.errors import OptionError
from eckart.formats.sources import Source, name_of, open_adapter_or_checkpoint, open_model
from eckart.operations.comparison.adapters import AdapterPair
from eckart.operations.comparison.checkpoints import CheckpointPair
from eckart.operations.comparison.claimed_merge import MergeClaim, plan_merge_check
from eckart.operations.comparison.merge_check import MergeCheck
from eckart.operations.comparison.result import DIRECTIONS, Comparison


def compare(
    a: Source,
    b: Source,
    *,
    base: Source | None = None,
    directions: int = DIRECTIONS,
    target: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    execution: Execution = Execution(),
) -> Comparison | MergeCheck:
    """Compare two adapters or two checkpoints, matrix by matrix.

    Given a checkpoint, an adapter and their base, check with `check_merge` whether the adapter is merged into it.

    Args:
        a: an adapter or a checkpoint: SOURCE text or path, `Adapter`, state dict or module.
        b: another of the same kind.
        base: the model that both were made from. Checkpoints are then compared by their updates a − base and b − base,
            and the intruder dimensions of the tuned weights are counted (Shuttleworth et al. 2024).
        directions: number of leading singular directions whose overlap φ(i, j) is computed. The principal angles of
            checkpoints are between these, those of adapters between all directions above rounding.
        target: only these modules, by PEFT's rules or a preset; a string is one pattern; all modules if empty.
        exclude: not these modules; takes precedence over `target`.
        execution: device, workers, memory, seed and progress.

    Returns:
        the `Comparison`, in float64 from the factors of adapters, streamed for checkpoints; for a checkpoint and an
        adapter the `MergeCheck`.

    Raises:
        SourceError, FileFormatError: a source cannot be read.
        MismatchError: the two are not of one model, or a pattern matches nothing; all faults at once.
        OptionError: a checkpoint and an adapter without their base; the message says what can be done.
        NotFiniteError: a tensor contains NaN or Inf.
    """
    return plan_comparison(
        a, b, base=base, directions=directions, target=target, exclude=exclude, execution=execution
    ).compare()


def plan_comparison(
    a: Source,
    b: Source,
    *,
    base: Source | None = None,
    directions: int = DIRECTIONS,
    target: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    execution: Execution = Execution(),
) -> AdapterPair | CheckpointPair | MergeClaim:
    """Plan `compare` from headers: `.preview()` describes the work, `.compare()` does it.

    Arguments, and errors that headers decide, as of `compare`.
    """
    execution.check()
    if directions < 1:
        msg = f"`directions` must be at least 1, got {directions}"
        raise OptionError(msg)
    patterns = as_patterns(target), as_patterns(exclude)
    first, second = open_adapter_or_checkpoint(a), open_adapter_or_checkpoint(b)
    if isinstance(first, Adapter) != isinstance(second, Adapter):
        return _claim(a, b, first, base, complete=not any(patterns), execution=execution)
    instead = "the base is the checkpoint that both were made from"
    original = None if base is None else open_model(base, instead=instead)
    if isinstance(first, Adapter) and isinstance(second, Adapter):
        names = name_of(a), name_of(b)
        return AdapterPair.checked(
            (first, second), names, original, directions=directions, patterns=patterns, execution=execution
        )
    assert not isinstance(first, Adapter)
    assert not isinstance(second, Adapter)
    return CheckpointPair.checked(
        first, second, original, directions=directions, patterns=patterns, execution=execution
    )


def _claim(
    a: Source, b: Source, first: Adapter | Checkpoint, base: Source | None, *, complete: bool, execution: Execution
) -> MergeClaim:
    """The check of a checkpoint and an adapter, which needs the base."""
    adapter, merged = (a, b) if isinstance(first, Adapter) else (b, a)
    if base is None:
        msg = (
            f"{name_of(merged)} is a model and {name_of(adapter)} an adapter, which cannot be compared with each "
            "other: use eckart analyze on each, or eckart merge to merge them. To check whether the adapter is merged "
            "into the model, give the model without it as `base`"
        )
        raise OptionError(msg)
    if not complete:
        msg = "a merge is checked in every tensor: leave out `target` and `exclude`"
        raise OptionError(msg)
    return plan_merge_check(base, adapter, merged, execution=execution)
