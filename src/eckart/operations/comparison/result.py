"""The result of a comparison: norms, cosine, angles and overlap of each pair of matrices, and of all together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from eckart.result import Result, Skipped

if TYPE_CHECKING:
    from torch import Tensor

    from eckart.linalg import Overlap
    from eckart.linalg.intruder import Intruders

Kind = Literal["adapters", "checkpoints", "updates"]
DIRECTIONS = 16  # leading directions whose overlap is computed


@dataclass(frozen=True)
class Alignment:
    """The relation of two column spaces, or of two row spaces.

    Attributes:
        angles: principal angles in radians, ascending, float64.
        overlap: φ(i, j) of the leading directions, and its expected value for random subspaces.
    """

    angles: Tensor
    overlap: Overlap

    @property
    def shared(self) -> float:
        """φ of all leading directions: 1 if one side's are contained in the other's span."""
        return float(self.overlap.phi[-1, -1])

    @property
    def chance(self) -> float:
        """Expected φ of two random subspaces of those dimensions."""
        return float(self.overlap.chance[-1, -1])

    def to_json(self) -> dict[str, Any]:
        """Angles, and φ with chance, each `[i-1][j-1]`."""
        return {
            "angles": self.angles.tolist(),
            "phi": _rounded(self.overlap.phi),
            "chance": _rounded(self.overlap.chance),
        }


@dataclass(frozen=True)
class MatrixComparison:
    """Two matrices of one name.

    Attributes:
        name: of the module.
        shape: `(out_features, in_features)`.
        norm_a, norm_b, norm_difference: Frobenius norms of A, of B and of A − B.
        cosine: ⟨A, B⟩ / (‖A‖·‖B‖), from −1 to 1; None if one is zero.
        directions: numbers of singular directions of A and of B that the angles are between.
        outputs: their column spaces, in the space of outputs; None if one has no direction.
        inputs: their row spaces, in the space of inputs.
        intruders: of base + A and of base + B, if a base was given.
    """

    name: str
    shape: tuple[int, int]
    norm_a: float
    norm_b: float
    norm_difference: float
    cosine: float | None
    directions: tuple[int, int]
    outputs: Alignment | None
    inputs: Alignment | None
    intruders: tuple[Intruders, Intruders] | None = None

    def to_json(self) -> dict[str, Any]:
        """The entry of `comparison.json`."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "norm_a": self.norm_a,
            "norm_b": self.norm_b,
            "norm_difference": self.norm_difference,
            "cosine": self.cosine,
            "directions": list(self.directions),
            "outputs": self.outputs and self.outputs.to_json(),
            "inputs": self.inputs and self.inputs.to_json(),
            "intruders": self.intruders and [_intruders_to_json(each) for each in self.intruders],
        }


@dataclass(frozen=True)
class Unpaired:
    """A matrix that only one side has; it counts as zero on the other.

    Attributes:
        name: of the module.
        side: the side that has it.
        norm: its Frobenius norm.
    """

    name: str
    side: Literal["a", "b"]
    norm: float


@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """Two adapters, two checkpoints, or two fine-tunes' updates of one base.

    Attributes:
        kind: what A and B are.
        a, b: as the user named them.
        base: the model that both were made from; None if it was not given.
        matrices: matrices that both have, in the order of A.
        unpaired: matrices that only one has.
        skipped: what was not compared, and why.
        seconds: wall time.
    """

    kind: Kind
    a: str
    b: str
    base: str | None
    matrices: Sequence[MatrixComparison]
    unpaired: Sequence[Unpaired]
    skipped: Sequence[Skipped]
    seconds: float

    @property
    def norm_a(self) -> float:
        """Frobenius norm of all of A's matrices together."""
        return _together([*(m.norm_a for m in self.matrices), *(u.norm for u in self.unpaired if u.side == "a")])

    @property
    def norm_b(self) -> float:
        """Frobenius norm of all of B's matrices together."""
        return _together([*(m.norm_b for m in self.matrices), *(u.norm for u in self.unpaired if u.side == "b")])

    @property
    def norm_difference(self) -> float:
        """Frobenius norm of A − B over all matrices; one that a side lacks counts as zero there."""
        return _together([*(m.norm_difference for m in self.matrices), *(u.norm for u in self.unpaired)])

    @property
    def cosine(self) -> float | None:
        """⟨A, B⟩ / (‖A‖·‖B‖) over all matrices; one that a side lacks counts as zero there."""
        a, b = self.norm_a, self.norm_b
        if not (a > 0 and b > 0):
            return None
        return clamped(sum((m.cosine or 0.0) * (m.norm_a / a) * (m.norm_b / b) for m in self.matrices))

    def rows(self) -> list[dict[str, Any]]:
        """One row per matrix that both have."""
        return [
            {
                "name": matrix.name,
                "shape": list(matrix.shape),
                "norm_a": matrix.norm_a,
                "norm_b": matrix.norm_b,
                "norm_difference": matrix.norm_difference,
                "cosine": matrix.cosine,
                "outputs_phi": matrix.outputs and matrix.outputs.shared,
                "inputs_phi": matrix.inputs and matrix.inputs.shared,
            }
            for matrix in self.matrices
        ]

    def to_json(self) -> dict[str, Any]:
        """The `eckart-compare/2` object."""
        return {
            "format": "eckart-compare/2",
            "kind": self.kind,
            "a": self.a,
            "b": self.b,
            "base": self.base,
            "total": {
                "norm_a": self.norm_a,
                "norm_b": self.norm_b,
                "norm_difference": self.norm_difference,
                "cosine": self.cosine,
                "seconds": self.seconds,
            },
            "matrices": [matrix.to_json() for matrix in self.matrices],
            "unpaired": [{"name": item.name, "side": item.side, "norm": item.norm} for item in self.unpaired],
            "skipped": [item.to_json() for item in self.skipped],
        }


def _together(norms: Iterable[float]) -> float:
    return math.hypot(*norms)


def clamped(value: float) -> float:
    """A cosine that rounding may have put outside −1 to 1."""
    return max(-1.0, min(1.0, value))


def _rounded(values: Tensor) -> list[list[float]]:
    return [[round(value, 6) for value in row] for row in values.tolist()]


def _intruders_to_json(found: Intruders) -> dict[str, Any]:
    return {
        "found": found.found,
        "undecided": found.undecided,
        "threshold": found.threshold,
        "cosine_lower": found.lower.tolist(),
        "cosine_upper": found.upper.tolist(),
    }
