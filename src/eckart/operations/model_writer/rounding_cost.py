"""What storing a merged weight cost: the rounding to a narrow dtype, or quantizing again, beside the update itself."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor


class Cost:
    """Squared norms of the rounding of changed rows and of their change, summed as the rows come."""

    def __init__(self) -> None:
        self._error = self._update = 0.0

    def add(self, before: Tensor, after: Tensor, stored: Tensor) -> None:
        """Take rows of the base, the changed ones, and these as they are stored; the first two in one dtype."""
        self._error += _square(stored.to(after.dtype).sub_(after))
        self._update += _square(after - before)

    def facts(self) -> dict[str, float]:
        """The sums, or nothing where nothing was rounded."""
        return {"error": self._error, "update": self._update} if self._update else {}


def errors_of(facts: Sequence[Mapping[str, float]]) -> tuple[float | None, float | None]:
    """‖stored − merged‖ of all weights, as a share of ‖merged‖ and of ‖merged − base‖; None where undefined.

    The first is of quantized weights alone, which are those that tell ‖merged‖.
    """
    total = {key: sum(fact.get(key, 0.0) for fact in facts) for key in ("error", "merged", "update")}

    def share(of: str) -> float | None:
        return math.sqrt(total["error"] / total[of]) if total[of] else None

    return share("merged"), share("update")


def _square(rows: Tensor) -> float:
    flat = rows.reshape(-1)
    return float(flat @ flat)
