"""Two adapters or two checkpoints side by side, or an adapter and what is claimed to hold it: which of these it is."""

from __future__ import annotations

from collections.abc import Sequence

from eckart.adapter.adapter import Adapter
from eckart.checkpoint import Checkpoint
from eckart.engine import Execution
from eckart.errors import OptionError
from eckart.formats.sources import Source, name_of, open_adapter_or_checkpoint
from eckart.operations.comparison.adapters import AdapterPair
from eckart.operations.comparison.checkpoints import CheckpointPair
from eckart.operations.comparison.claimed_merge import MergeClaim, plan_merge_check
from eckart.operations.comparison.merge_check import MergeCheck
from eckart.operations.comparison.result import DIRECTIONS, Comparison

DEFAULT_EXECUTION = Execution()


def compare(
    a: Source,
    b: Source,
    *,
    base: Source | None = None,
    directions: int = DIRECTIONS,
    target: Sequence[str] = (),
    exclude: Sequence[str] = (),
    execution: Execution = DEFAULT_EXECUTION,
) -> Comparison | MergeCheck:
    """How two adapters, or two checkpoints, lie to each other, matrix by matrix.

    A checkpoint and an adapter, given with their base, are checked by `check_merge` instead: is it baked in?

    Args:
        a: an adapter or a checkpoint: SOURCE text or path, `Adapter`, state dict or module.
        b: another of the same sort.
        base: what both were made from. Checkpoints are then compared by their updates a − base and b − base, and
            the intruder dimensions of the tuned weights are counted (Shuttleworth et al. 2024).
        directions: leading singular directions whose overlap φ(i, j) is told; of checkpoints also those that the
            principal angles are between, while of adapters it is all that are not rounding.
        target: only these modules, by PEFT's rules or a preset; all if empty.
        exclude: not these modules; wins over `target`.
        execution: device, workers, memory, seed and progress.

    Returns:
        the `Comparison`, in float64 from the factors of adapters, and streamed from checkpoints; of a checkpoint and
        an adapter the `MergeCheck`.

    Raises:
        SourceError, FileFormatError: a source cannot be read.
        MismatchError: the two are not of one model, or a pattern matches nothing; all faults at once.
        OptionError: a checkpoint and an adapter without their base; the message says what can be done.
        NotFiniteError: a tensor holds NaN or Inf.
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
    target: Sequence[str] = (),
    exclude: Sequence[str] = (),
    execution: Execution = DEFAULT_EXECUTION,
) -> AdapterPair | CheckpointPair | MergeClaim:
    """The checked work of a comparison, from headers alone: `.preview()` tells of it, `.compare()` does it.

    Takes what `compare` takes and raises what it raises before tensors are read.
    """
    execution.check()
    if directions < 1:
        msg = f"directions must be at least 1, got {directions}"
        raise OptionError(msg)
    first, second = open_adapter_or_checkpoint(a), open_adapter_or_checkpoint(b)
    if isinstance(first, Adapter) and isinstance(second, Adapter):
        names, ground = (name_of(a), name_of(b)), _opened(base)
        return AdapterPair.checked(
            (first, second), names, ground, directions=directions, patterns=(target, exclude), execution=execution
        )
    if isinstance(first, Adapter) or isinstance(second, Adapter):
        return _claim(a, b, first, base, whole=not (target or exclude), execution=execution)
    return CheckpointPair.checked(
        first, second, _opened(base), directions=directions, patterns=(target, exclude), execution=execution
    )


def _opened(base: Source | None) -> Checkpoint | None:
    side = None if base is None else open_adapter_or_checkpoint(base)
    if isinstance(side, Adapter):
        msg = f"{name_of(side)} is an adapter; the base is the checkpoint that both were made from"
        raise OptionError(msg)
    return side


def _claim(
    a: Source, b: Source, first: Adapter | Checkpoint, base: Source | None, *, whole: bool, execution: Execution
) -> MergeClaim:
    """The check of a checkpoint and an adapter, for which the base is needed."""
    adapter, merged = (a, b) if isinstance(first, Adapter) else (b, a)
    if base is None:
        msg = (
            f"{name_of(merged)} is a checkpoint and {name_of(adapter)} an adapter, which cannot be compared: look at "
            "each with eckart analyze, or bake the adapter in with eckart merge. To check whether the checkpoint is a "
            "base with this adapter merged, give that base too, as `base`"
        )
        raise OptionError(msg)
    if not whole:
        msg = "a merge is checked in every tensor: leave out `target` and `exclude`"
        raise OptionError(msg)
    return plan_merge_check(base, adapter, merged, execution=execution)
