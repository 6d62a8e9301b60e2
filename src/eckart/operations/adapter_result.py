"""An adapter that was made, with the rank and error of every layer, and what was left out and why."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eckart.adapter.adapter import Adapter
from eckart.result import Skipped

Refine = Callable[[Adapter], Adapter]
"""What a finished adapter goes through before it is written; it gives the very same back where it changes nothing."""


@dataclass(frozen=True)
class LayerRecord:
    """What one layer keeps of the update that it was made from.

    Attributes:
        name: of the module.
        shape: `(out_features, in_features)`.
        rank: of its factors.
        error: ‖ΔW − BA‖_F / ‖ΔW‖_F, measured on the factors as written.
        error_lower_bound: no factors of that rank have a smaller error; fails with probability under 1e-6.
        fro_norm: ‖ΔW‖_F.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    error: float
    error_lower_bound: float
    fro_norm: float


@dataclass(frozen=True)
class AdapterResult:
    """An adapter made from a fine-tune or from other adapters.

    Attributes:
        made_by: the command that made it, such as `extract`.
        adapter: the result; its tensors are read from `output` where it was written.
        layers: what each layer kept.
        skipped: tensors that are not in the adapter, and why.
        output: where it was written, None if it was not.
        nbytes: size of the written files, or of the tensors.
        seconds: wall time.
        guarantee: what is proved about a shared budget, None without one.
    """

    made_by: str
    adapter: Adapter
    layers: list[LayerRecord]
    skipped: list[Skipped]
    output: Path | None
    nbytes: int
    seconds: float
    guarantee: str | None = None

    @property
    def error(self) -> float:
        """Relative Frobenius error of all layers together."""
        return _share([layer.error for layer in self.layers], self.layers)

    @property
    def error_lower_bound(self) -> float:
        """No adapter of these ranks has a smaller error over all layers together."""
        return _share([layer.error_lower_bound for layer in self.layers], self.layers)

    def to_json(self) -> dict[str, Any]:
        """The `eckart-extract/2` object, or that of another command."""
        return {
            "format": f"eckart-{self.made_by}/2",
            "layers": [
                {
                    "name": layer.name,
                    "shape": list(layer.shape),
                    "rank": layer.rank,
                    "error": layer.error,
                    "error_lower_bound": layer.error_lower_bound,
                }
                for layer in self.layers
            ],
            "error": self.error,
            "error_lower_bound": self.error_lower_bound,
            "params": self.adapter.params,
            "bytes": self.nbytes,
            "skipped": [item.to_json() for item in self.skipped],
            "guarantee": self.guarantee,
            "seconds": self.seconds,
        }


def _share(errors: list[float], layers: list[LayerRecord]) -> float:
    """Relative error over several layers from those of each."""
    total = sum(layer.fro_norm**2 for layer in layers)
    missed = sum((error * layer.fro_norm) ** 2 for error, layer in zip(errors, layers, strict=True))
    return (missed / total) ** 0.5 if total else 0.0
