"""What checking a claimed merge says: of each changed matrix, and of the whole claim."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from eckart.checkpoint import LeftOut

Verdict = Literal["equal", "rounding", "other weight", "not merged", "differs"]
SLACK = 4.0  # times the energy of one rounding a value: what is left beside an update that fits
CANCELLED = 1e-14  # of the energies: what their difference is trusted to


@dataclass(frozen=True)
class MergedMatrix:
    """One matrix that the claim changes, beside what the claim makes of it.

    Attributes:
        name: of the matrix, or of a tensor that is none.
        shape: `(out_features, in_features)`; of a tensor that is no matrix its entries and what each holds.
        equal: the merged values are the claim's, rounded once from float64.
        ulps: largest distance from the claim, in units of the last place of the merged dtype at the largest of the
            terms that were added; infinite where a value is not finite.
        roundings: distance in ulps that merging in the stored dtype, term by term, may leave.
        gained: ‖merged − base‖².
        update: ‖Δ‖² of the claim.
        inner: ⟨merged − base, Δ⟩.
        floor: energy that one rounding a value would leave.
    """

    name: str
    shape: tuple[int, int]
    equal: bool
    ulps: float
    roundings: int
    gained: float
    update: float
    inner: float
    floor: float

    @property
    def error(self) -> float | None:
        """‖(merged − base) − Δ‖ / ‖Δ‖; None where the claim changes nothing."""
        return math.sqrt(self.left_by(1.0) / self.update) if self.update > 0 else None

    @property
    def weight(self) -> float | None:
        """The factor of Δ that fits best: 1 for a true claim, ½ where the scale was halved."""
        return self.inner / self.update if self.update > 0 else None

    @property
    def verdict(self) -> Literal["equal", "rounding", "differs"]:
        """Equal bit for bit, within the roundings of a merge, or neither."""
        if self.equal:
            return "equal"
        return "rounding" if self.ulps <= self.roundings else "differs"

    def left_by(self, weight: float) -> float:
        """‖(merged − base) − weight·Δ‖²."""
        return max(0.0, self.gained - 2 * weight * self.inner + weight**2 * self.update)

    def fits(self, weight: float) -> bool:
        """Whether rounding alone explains what that weight leaves."""
        allowed = SLACK * self.roundings * self.floor + CANCELLED * (self.gained + weight**2 * self.update)
        return self.left_by(weight) <= allowed

    def to_json(self) -> dict[str, Any]:
        """The entry of `comparison.json`; null for what is not finite."""
        numbers = {"ulps": self.ulps, "error": self.error, "weight": self.weight}
        finite = {key: value if value is not None and math.isfinite(value) else None for key, value in numbers.items()}
        return {"name": self.name, "shape": list(self.shape), "verdict": self.verdict, **finite}


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
    not_checked: Sequence[LeftOut]
    unchanged: int
    seconds: float

    @property
    def weight(self) -> float | None:
        """The factor of the claimed updates that fits all matrices together best."""
        total = sum(matrix.update for matrix in self.matrices)
        weight = sum(matrix.inner for matrix in self.matrices) / total if total > 0 else None
        return weight if weight is not None and math.isfinite(weight) else None

    @property
    def verdict(self) -> Verdict:
        """`equal` and `rounding` confirm the claim; `other weight` holds for `weight`; `not merged` is the base."""
        if self.altered or self.faults:
            return "differs"
        verdicts = {matrix.verdict for matrix in self.matrices}
        if "differs" not in verdicts:
            return "rounding" if "rounding" in verdicts else "equal"
        if all(matrix.gained == 0 for matrix in self.matrices):
            return "not merged"
        weight = self.weight
        fits = weight is not None and all(matrix.fits(weight) for matrix in self.matrices)
        return "other weight" if fits else "differs"

    @property
    def holds(self) -> bool:
        """Whether the claim is confirmed in everything that was checked."""
        return self.verdict in ("equal", "rounding")

    def to_json(self) -> dict[str, Any]:
        """The `eckart-compare/1` object of kind `merge`."""
        return {
            "format": "eckart-compare/1",
            "kind": "merge",
            "merged": self.merged,
            "base": self.base,
            "adapters": list(self.adapters),
            "weights": list(self.weights),
            "verdict": self.verdict,
            "holds": self.holds,
            "weight": self.weight,
            "matrices": [matrix.to_json() for matrix in self.matrices],
            "altered": list(self.altered),
            "faults": list(self.faults),
            "not_checked": [{"name": item.name, "reason": item.reason} for item in self.not_checked],
            "unchanged": self.unchanged,
            "total": {"seconds": self.seconds},
        }
