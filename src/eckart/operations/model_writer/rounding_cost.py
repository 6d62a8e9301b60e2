"""The error of storing merged weights, by rounding to a narrow dtype or quantizing again, relative to the update."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from eckart.linalg import InMemory
from eckart.linalg.scaling import frobenius_norm


class RoundingCost:
    """Norms of the rounding of changed rows and of their change, accumulated row by row."""

    def __init__(self) -> None:
        self._error = self._update = 0.0

    def add(self, before: Tensor, after: Tensor, stored: Tensor) -> None:
        """Add rows of the base, the changed rows, and these as stored; the first two in the same dtype."""
        self._error = math.hypot(self._error, _norm(stored.to(after.dtype).sub_(after)))
        self._update = math.hypot(self._update, _norm(after - before))

    def facts(self) -> dict[str, float]:
        """The norms; empty if nothing was rounded."""
        return {"error": self._error, "update": self._update} if self._update else {}


def errors_of(facts: Sequence[Mapping[str, float]]) -> tuple[float | None, float | None]:
    """‖stored − merged‖ of all weights, as a share of ‖merged‖ and of ‖merged − base‖; None if undefined.

    The first covers quantized weights only: ‖merged‖ is measured for no others.
    """
    total = {key: math.hypot(*(fact.get(key, 0.0) for fact in facts)) for key in ("error", "merged", "update")}

    def share(norm: str) -> float | None:
        return total["error"] / total[norm] if total[norm] else None

    return share("merged"), share("update")


def _norm(rows: Tensor) -> float:
    return frobenius_norm(InMemory(rows))
