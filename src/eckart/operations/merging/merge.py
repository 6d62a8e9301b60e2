"""Adapters merged into a base: base + Σ wᵢ·Δᵢ, streamed tensor by tensor, rounded once to the base's dtype."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.engine import Execution
from eckart.formats.sources import Source
from eckart.operations.merging.calibrated import calibrated_merge
from eckart.operations.merging.plan import Adapters, plan_merge, written_to
from eckart.result import Result, Skipped

if TYPE_CHECKING:
    import torch

    from eckart.checkpoint import DType
    from eckart.operations.moments import Moments


@dataclass(frozen=True, repr=False)
class MergeResult(Result):
    """A model with adapters merged into it.

    Attributes:
        output: the folder.
        tensors: number of tensors in it.
        changed: number of tensors that an adapter changed.
        nbytes: bytes of all tensors.
        untied: whether an output layer that shared the embedding's weight now has its own.
        skipped: what the output does not contain, and why.
        seconds: wall time.
        requantization_error: ‖requantized − merged‖_F / ‖merged‖_F if the base is quantized; otherwise None.
        update_error: error of rounding or quantizing the changed weights, as a share of ‖merged − base‖_F; rounding is
            measured on an eighth of the rows; None if nothing was rounded.
        encoding: what the changed weights of a quantized base are quantized to again; None if they are dense.
        held_out: losses on held-out text, in nats per token, of the base, with the adapters next to it, merged with
            the nearest codes, and as written: the mean and that on each kind of text; None if they were not measured.
        notes: warnings and advice.
    """

    output: Path
    tensors: int
    changed: int
    nbytes: int
    untied: bool
    skipped: Sequence[Skipped]
    seconds: float
    requantization_error: float | None = None
    update_error: float | None = None
    encoding: str | None = None
    held_out: Mapping[str, Mapping[str, float]] | None = None
    notes: tuple[str, ...] = ()

    def gain_kept(self, label: str = "written") -> float | None:
        """The share of the adapters' gain next to the base that a model has; None if it is unknown or not positive."""
        if self.held_out is None:
            return None
        base, adapted, loss = (self.held_out[name]["mean"] for name in ("base", "adapter next to it", label))
        return (base - loss) / (base - adapted) if base > adapted else None

    def to_json(self) -> dict[str, Any]:
        """The `eckart-merge/2` object."""
        return {
            "format": "eckart-merge/2",
            "tensors": self.tensors,
            "changed": self.changed,
            "bytes": self.nbytes,
            "untied": self.untied,
            "requantization_error": self.requantization_error,
            "update_error": self.update_error,
            "encoding": self.encoding,
            "requantization": {"update_error": self.update_error, "gain": self.gain_kept()} if self.held_out else None,
            "held_out": self.held_out,
            "notes": list(self.notes),
            "skipped": [item.to_json() for item in self.skipped],
            "seconds": self.seconds,
        }


def merge(
    base: Source,
    adapters: Adapters,
    output: str | Path,
    *,
    weights: Sequence[float] | None = None,
    scale: Mapping[str, float] | None = None,
    dtype: DType | torch.dtype | str | None = None,
    moments: Moments | None = None,
    original: Source | None = None,
    execution: Execution = Execution(),
    force: bool = False,
    check: Callable[[Path], None] = lambda folder: None,
) -> MergeResult:
    """Write `base` with adapters merged into it: a model folder in Hugging Face layout.

    Rows are upcast to float32 (float64 if stored or written so), the product of the factors is added, and the sum is
    rounded once. A DoRA layer is renormalized per output; a tensor that an adapter saves completely replaces the
    base's, or is mixed with it by its weight. An adapter on only one of a tied embedding and output layer gives each
    its own weight.
    Tensors that no adapter changes are copied as they are, NaN and Inf included.

    Args:
        base: SOURCE text, state dict or module.
        adapters: one or several, in memory or their SOURCEs.
        output: folder to write, or a .safetensors file if the base is one file; finished tensors are stored next to it
            until it is complete.
        weights: factor of each adapter, may be negative; default 1. An adapter of weight 0 changes nothing.
        scale: factors of layers by pattern; 0 leaves them out. See `with_scales`.
        dtype: dtype of all floating-point tensors, by name or as torch dtype; None keeps the base's (float32 for
            quantized GGUF tensors).
        moments: second moments of the layers' inputs, by which the codes of a quantized base are chosen so that the
            outputs of each layer change least.
        original: the model that a quantized base was made from; its weights are updated instead of the base's codes.
        execution: workers, memory, progress, resume.
        force: replace an existing output.
        check: called with the complete output before it gets its final name; after an error it does not get it.

    Returns:
        `MergeResult`: where it is, how many tensors changed, and what it does not contain.

    Raises:
        MismatchError: keys of the adapters that the base lacks or has with a different shape; all at once.
        OptionError: weights that are not one finite number per adapter, a base that is an adapter or the reverse.
        OutputError: the output exists or cannot be written.
        NotFiniteError: a changed tensor or an adapter contains NaN or Inf, or the result is outside its dtype's range.
    """
    began = time.monotonic()
    execution.check()
    plan = written_to(plan_merge(base, adapters, weights=weights, scale=scale, dtype=dtype), Path(output))
    plan = calibrated_merge(plan, moments=moments, original=original)
    plan.check_output(Path(output), force=force)
    # Imported here: a refusal needs no torch.
    from eckart.operations.model_writer.rounding_cost import errors_of
    from eckart.operations.model_writer.writer import ModelWriter

    facts = ModelWriter(plan).write(Path(output), execution, force=force, check=check)
    return MergeResult(
        Path(output),
        plan.count,
        len(plan.changed),
        plan.nbytes,
        bool(plan.untied),
        plan.skipped,
        time.monotonic() - began,
        *errors_of(list(facts.values())),
        encoding=plan.encoding,
    )
