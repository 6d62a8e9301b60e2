"""Where the page's slider may stop. Spectra that are thinned keep their exact ranks at every one of these stops.

Each list goes from a small adapter to a large one.
"""

from collections.abc import Sequence

ENERGIES = (*(percent / 100 for percent in range(1, 100)), 0.995, 0.999)
ERRORS = (*(percent / 100 for percent in range(99, 0, -1)), 0.005, 0.002, 0.001)


def rank_stops(dense: int, highest: int) -> list[int]:
    """Ranks that the slider takes: every one that each spectrum knows, then steps of a half and a whole doubling.

    Args:
        dense: up to this rank every one is a stop.
        highest: of all matrices.
    """
    return [*range(1, min(dense, highest) + 1), *(rank for rank in sparse_ranks(highest) if rank > dense)]


def sparse_ranks(highest: int) -> Sequence[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, … up to and with `highest`."""
    doublings = [2**power for power in range(highest.bit_length())]
    between = [3 * rank // 2 for rank in doublings if rank > 1]
    return sorted({rank for rank in (*doublings, *between) if rank <= highest} | {highest})
