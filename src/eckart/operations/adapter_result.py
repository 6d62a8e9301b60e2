"""A new adapter with the rank and error of every layer, and what was skipped and why."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from eckart.adapter.adapter import Adapter
from eckart.result import Result, Skipped

Refine = Callable[[Adapter], Adapter]
"""Changes a finished adapter before it is written; returns the same object if it changes nothing."""


@dataclass(frozen=True)
class LayerRecord:
    """How well one layer approximates its update.

    Attributes:
        name: of the module.
        shape: `(out_features, in_features)`.
        rank: rank of its factors; 0 if the budget left none for the layer.
        error: ‖ΔW − BA‖_F / ‖ΔW‖_F, measured on the factors as written.
        error_lower_bound: no factors of that rank have a smaller error; fails with probability under 1e-6.
        fro_norm: ‖ΔW‖_F.
        lower_bounds: of the errors at ranks 1, 2, … up to `rank`, as far as they were computed.
        signal_rank: number of its directions that stand above the rounding of the stored weights; None if unknown.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    error: float
    error_lower_bound: float
    fro_norm: float
    lower_bounds: Sequence[float] = ()
    signal_rank: int | None = None

    def at_rank(self, rank: int, error: float) -> "LayerRecord":
        """The record of a truncation: of its rank, with its error; as it is at the same rank."""
        if rank == self.rank or not self.lower_bounds:
            return replace(self, error=error)
        bound = min(self.lower_bounds[rank - 1], error) if rank else 1.0
        signal = None if self.signal_rank is None else min(self.signal_rank, rank)
        return replace(self, rank=rank, error=error if rank else 1.0, error_lower_bound=bound, signal_rank=signal)

    def to_json(self) -> dict[str, Any]:
        """The entry of a `layers` list."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "rank": self.rank,
            "error": self.error,
            "error_lower_bound": self.error_lower_bound,
            **({} if self.signal_rank is None else {"signal_rank": self.signal_rank}),
        }


@dataclass(frozen=True, repr=False)
class AdapterResult(Result):
    """An adapter computed from a fine-tune or from other adapters.

    Attributes:
        made_by: the operation, such as `extract`.
        adapter: the result; its tensors are read from `output` where it was written.
        layers: rank and error of each layer, rank 0 included.
        skipped: modules, tensors and config fields that are not in the adapter, with the reason.
        output: where it was written, None if it was not.
        nbytes: size of the written files, or of the tensors.
        seconds: wall time.
        guarantee: how much more energy another use of the budget could preserve; None without a budget.
        notes: warnings and advice that were also reported while it ran.
    """

    made_by: str
    adapter: Adapter
    layers: list[LayerRecord]
    skipped: list[Skipped]
    output: Path | None
    nbytes: int
    seconds: float
    guarantee: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """Relative Frobenius error of all layers together."""
        return _combined([layer.error for layer in self.layers], self.layers)

    @property
    def error_lower_bound(self) -> float:
        """No adapter of these ranks has a smaller error over all layers together."""
        return _combined([layer.error_lower_bound for layer in self.layers], self.layers)

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """One row per layer."""
        return [layer.to_json() | {"shape": layer.shape} for layer in self.layers]

    def to_json(self) -> dict[str, Any]:
        """The `eckart-extract/2` object, or that of another operation."""
        return {
            "format": f"eckart-{self.made_by}/2",
            "layers": [layer.to_json() for layer in self.layers],
            "error": self.error,
            "error_lower_bound": self.error_lower_bound,
            "params": self.adapter.params,
            "bytes": self.nbytes,
            "skipped": [item.to_json() for item in self.skipped],
            "guarantee": self.guarantee,
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


def rounding_note(layers: Sequence[LayerRecord]) -> str | None:
    """A warning about layers of which less than half of the directions stand above rounding; None without any."""
    known = [layer for layer in layers if layer.signal_rank is not None]
    mostly = [layer for layer in known if 2 * (layer.signal_rank or 0) < layer.rank]
    if not mostly:
        return None
    above = median(layer.signal_rank or 0 for layer in known)
    return (
        f"{len(mostly)} of {len(layers)} layers are mostly rounding: less than half of their directions stand above "
        f"the rounding of the stored weights (median over all layers: {above:g}); `rank=noise` keeps only these"
    )


def _combined(errors: list[float], layers: list[LayerRecord]) -> float:
    """Relative error over several layers from the errors of each."""
    largest = max((layer.fro_norm for layer in layers), default=0.0) or 1.0
    shares = [layer.fro_norm / largest for layer in layers]
    total = math.hypot(*shares)
    return math.hypot(*(error * share for error, share in zip(errors, shares, strict=True))) / total if total else 0.0
