"""The stops of the page's slider, at each of which ranks of thinned spectra are exact.

Each list is in the order of growing adapters.
"""

from collections.abc import Sequence

ENERGIES = (*(percent / 100 for percent in range(1, 100)), 0.995, 0.999)
ERRORS = (*(percent / 100 for percent in range(99, 0, -1)), 0.005, 0.002, 0.001)


def rank_stops(dense: int, highest: int) -> list[int]:
    """Rank stops of the slider: every rank up to `dense`, then powers of two and the ranks halfway between them.

    Args:
        dense: the highest rank at which every spectrum still has all singular values.
        highest: the highest rank of all matrices.
    """
    return [*range(1, min(dense, highest) + 1), *(rank for rank in sparse_ranks(highest) if rank > dense)]


def sparse_ranks(highest: int) -> Sequence[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, …, and `highest` as the last."""
    doublings = [2**power for power in range(highest.bit_length())]
    between = [3 * rank // 2 for rank in doublings if rank > 1]
    return sorted({rank for rank in (*doublings, *between) if rank <= highest} | {highest})
