"""The size of each part of an adapter, in bytes or parameters, for checking budgets and warning about high ranks."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eckart.checkpoint import DType
from eckart.errors import OptionError
from eckart.operations.rank_choice import HEADER_BYTES, Budget

if TYPE_CHECKING:
    from eckart.adapter import AdapterOutline

Shape = tuple[int, int]


@dataclass(frozen=True)
class Costs:
    """The size of an adapter as a function of its ranks, in bytes or parameters.

    Attributes:
        by_rank: cost of one rank of each layer whose rank is to be chosen.
        fixed: cost of everything else: magnitudes, biases, tensors saved in full, headers.
    """

    by_rank: Mapping[str, int]
    fixed: int

    @classmethod
    def of_adapter(
        cls, outline: "AdapterOutline", names: Collection[str], dtype: DType | None, *, in_bytes: bool
    ) -> "Costs":
        """The costs of an adapter's layers.

        Args:
            outline: outline of the adapter.
            names: the layers whose rank is to be chosen.
            dtype: data type of their factors; None keeps the present ones.
            in_bytes: count bytes of the file rather than parameters.
        """
        by_rank, total = {}, outline.nbytes if in_bytes else outline.params
        for name in names:
            for factor in (outline[name].lora_A, outline[name].lora_B):
                total -= factor.nbytes if in_bytes else factor.numel()
                width = (dtype or factor.dtype).itemsize if in_bytes else 1
                by_rank[name] = by_rank.get(name, 0) + width * (factor.numel() // outline[name].rank)
        headers = HEADER_BYTES * (len(outline) + len(outline.modules_to_save)) if in_bytes else 0
        return cls(by_rank, total + headers)

    def total(self, ranks: Mapping[str, int]) -> int:
        """The size of the adapter with these ranks."""
        return self.fixed + sum(cost * ranks[name] for name, cost in self.by_rank.items())

    def check(self, budget: Budget, needed: Collection[str]) -> None:
        """Refuse a budget that is too small for the fixed parts and the smallest ranks.

        Args:
            budget: the limit.
            needed: layers that need at least rank 1; if there are none, one rank of one layer must fit.

        Raises:
            OptionError: the message gives the smallest size that is possible.
        """
        least = self.fixed + (sum(self.by_rank[name] for name in needed) or min(self.by_rank.values()))
        if budget.amount < least:
            what = "rank 1 where a layer needs one" if needed else "rank 1 in the smallest layer"
            everywhere = self.fixed + sum(self.by_rank.values())
            msg = (
                f"`budget` of {budget.text()} is too small: {what} takes {budget.text(least)}, rank 1 everywhere "
                f"{budget.text(everywhere)}; raise `budget`"
            )
            raise OptionError(msg)


def break_even_note(ranks: Iterable[tuple[Shape, int]]) -> str | None:
    """A warning about ranks so high that two factors are larger than the matrix they update; None without any.

    Args:
        ranks: shape (m, n) and rank of each layer. Factors have r·(m + n) parameters and the matrix has m·n, so they
            break even at r = m·n / (m + n).
    """
    layers = list(ranks)
    above = [(shape, rank) for shape, rank in layers if rank * sum(shape) > shape[0] * shape[1]]
    if not above:
        return None
    limits = [rows * columns // (rows + columns) for (rows, columns), _ in above]
    limit = f"{min(limits)}" if min(limits) == max(limits) else f"{min(limits)}–{max(limits)}"
    factors = sum(rank * sum(shape) for shape, rank in above)
    matrices = sum(rows * columns for (rows, columns), _ in above)
    return (
        f"{len(above)} of {len(layers)} layers have a rank above break-even (rank {limit}), where the factors are "
        f"larger than the matrix: {factors:,} parameters for matrices of {matrices:,}; a lower rank or the full "
        "weights take less space"
    )
