"""What checking a claimed merge says: of each changed matrix, and of the whole claim."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from eckart.linalg import Interval
from eckart.result import Skipped

Verdict = Literal["equal", "rounding", "other weight", "not merged", "undecided", "differs"]


@dataclass(frozen=True)
class MergedMatrix:
    """One matrix that the claim changes, beside what the claim makes of it.

    Attributes:
        name: of the matrix, or of a tensor that is none.
        shape: `(out_features, in_features)`; of a tensor that is no matrix its entries and what each holds.
        equal: the merged values are the claim's, rounded once from float64.
        ulps: largest distance from the claim, in units in the last place of the merged dtype at the largest of the
            terms that were added; infinite where a value is not finite.
        error: ‖(merged − base) − Δ‖ / ‖Δ‖, the rounding of the merged values in it; None where Δ is zero.
        lowest, highest: every weight w between them explains all values as base + w·Δ with the rounding of a merge;
            none does where `lowest` is above `highest`.
    """

    name: str
    shape: tuple[int, int]
    equal: bool
    ulps: float
    error: float | None
    lowest: float
    highest: float

    @property
    def verdict(self) -> Literal["equal", "rounding", "differs"]:
        """Equal bit for bit, within the rounding of a merge, or neither."""
        if self.equal:
            return "equal"
        return "rounding" if self.lowest <= 1 <= self.highest else "differs"

    @property
    def weight(self) -> Interval | None:
        """The weights that explain every value; None where no single one does, or any would."""
        return interval(self.lowest, self.highest)

    def to_json(self) -> dict[str, Any]:
        """The entry of `comparison.json`; null for what is not finite."""
        numbers = {"ulps": self.ulps, "error": self.error}
        finite = {key: value if value is not None and math.isfinite(value) else None for key, value in numbers.items()}
        weight = self.weight and {"lower": self.weight.lower, "upper": self.weight.upper}
        return {"name": self.name, "shape": list(self.shape), "verdict": self.verdict, **finite, "weight": weight}


def interval(lowest: float, highest: float) -> Interval | None:
    """The interval, where it is one and is finite."""
    return Interval(lowest, highest) if -math.inf < lowest <= highest < math.inf else None


@dataclass(frozen=True)
class MergeCheck:
    """Whether a checkpoint is a base with adapters baked in.

    Attributes:
        merged, base: the checkpoints.
        adapters: as the user named them.
        weights: that the claim gives them.
        matrices: everything that the claim changes.
        altered: tensors, or matrices in them, that it leaves alone and that changed nevertheless.
        faults: tensors that one checkpoint lacks or has in another shape.
        not_checked: what could not be, and why.
        unchanged: how many tensors or matrices are as they were, rightly.
        seconds: wall time.
    """

    merged: str
    base: str
    adapters: Sequence[str]
    weights: Sequence[float]
    matrices: Sequence[MergedMatrix]
    altered: Sequence[str]
    faults: Sequence[str]
    not_checked: Sequence[Skipped]
    unchanged: int
    seconds: float

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest weight that explain every matrix."""
        lowest = max((matrix.lowest for matrix in self.matrices), default=-math.inf)
        return lowest, min((matrix.highest for matrix in self.matrices), default=math.inf)

    @property
    def weight(self) -> Interval | None:
        """The factors of the claimed updates that explain every value of every matrix; None where none does."""
        return interval(*self.limits)

    @property
    def verdict(self) -> Verdict:
        """What the checkpoint is.

        `equal` and `rounding` confirm the claim. `other weight`: the update is in it, times `weight`. `not merged`: it
        is the base. `undecided`: the update is so small that rounding hides whether it is in it. `differs`: no weight
        explains it, or something else changed too.
        """
        if self.altered or self.faults:
            return "differs"
        if all(matrix.equal for matrix in self.matrices):
            return "equal"
        lowest, highest = self.limits
        if lowest > highest:
            return "differs"
        claimed, none = lowest <= 1 <= highest, lowest <= 0 <= highest
        if claimed:
            return "undecided" if none else "rounding"
        return "not merged" if none else "other weight"

    @property
    def holds(self) -> bool:
        """Whether the claim is confirmed in everything that was checked."""
        return self.verdict in ("equal", "rounding")

    def to_json(self) -> dict[str, Any]:
        """The `eckart-compare/2` object of kind `merge`."""
        return {
            "format": "eckart-compare/2",
            "kind": "merge",
            "merged": self.merged,
            "base": self.base,
            "adapters": list(self.adapters),
            "weights": list(self.weights),
            "verdict": self.verdict,
            "holds": self.holds,
            "weight": self.weight and {"lower": self.weight.lower, "upper": self.weight.upper},
            "matrices": [matrix.to_json() for matrix in self.matrices],
            "altered": list(self.altered),
            "faults": list(self.faults),
            "not_checked": [item.to_json() for item in self.not_checked],
            "unchanged": self.unchanged,
            "total": {"seconds": self.seconds},
        }
