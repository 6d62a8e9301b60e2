"""The result of checking a claimed merge: for each changed matrix, and for the claim."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from eckart.linalg import Interval
from eckart.result import Result, Skipped

Verdict = Literal["equal", "rounding", "other weight", "not merged", "undecided", "differs"]


@dataclass(frozen=True)
class MergedMatrix:
    """One matrix that the claim changes, compared with what the claim predicts.

    Attributes:
        name: of the matrix, or of another tensor.
        shape: `(out_features, in_features)`; of another tensor, its length and the size of each entry.
        equal: whether the merged values are the claimed ones, rounded once from float64.
        ulps: largest distance from the claim, in units in the last place of the merged dtype at the largest of the
            added terms; infinite if a value is not finite.
        error: ‖(merged − base) − Δ‖ / ‖Δ‖, including the rounding of the merged values; None if Δ is zero.
        lowest, highest: every weight w between them explains all values as base + w·Δ with the rounding of a merge;
            no weight does if `lowest` is above `highest`.
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
        """The weights that explain every value; None if no single one does, or any would."""
        return interval(self.lowest, self.highest)

    def to_json(self) -> dict[str, Any]:
        """The entry of `comparison.json`; null for numbers that are not finite."""
        numbers = {"ulps": self.ulps, "error": self.error}
        finite = {key: value if value is not None and math.isfinite(value) else None for key, value in numbers.items()}
        weight = self.weight and {"lower": self.weight.lower, "upper": self.weight.upper}
        return {"name": self.name, "shape": list(self.shape), "verdict": self.verdict, **finite, "weight": weight}


def interval(lowest: float, highest: float) -> Interval | None:
    """The interval, if it is not empty and is finite."""
    return Interval(lowest, highest) if -math.inf < lowest <= highest < math.inf else None


@dataclass(frozen=True, repr=False)
class MergeCheck(Result):
    """Whether a checkpoint is a base with adapters merged into it.

    Attributes:
        merged, base: the checkpoints.
        adapters: as the user named them.
        weights: claimed weight of each.
        matrices: everything that the claim changes.
        altered: tensors, or matrices in them, that changed although the claim does not change them.
        faults: tensors that one checkpoint lacks or has with a different shape.
        not_checked: what could not be checked, and why.
        unchanged: number of tensors or matrices that are unchanged, as claimed.
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
        """The factors of the claimed updates that explain every value of every matrix; None if none does."""
        return interval(*self.limits)

    @property
    def verdict(self) -> Verdict:
        """The conclusion about the checkpoint.

        `equal` and `rounding` confirm the claim. `other weight`: it contains the update times `weight`. `not merged`:
        it is the base. `undecided`: rounding hides whether it contains the update. `differs`: no weight explains it, or
        something else changed too.
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

    def rows(self) -> list[dict[str, Any]]:
        """One row per changed matrix."""
        return [matrix.to_json() for matrix in self.matrices]

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
