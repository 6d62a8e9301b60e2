"""What a choice of rank comes to, by the library alone: what the page must show to the last digit."""

import math
from dataclasses import dataclass

from eckart.linalg import RankBound, Spectrum, allocate
from eckart.operations import Analysis
from eckart.operations.rank_choice import HEADER_BYTES, Budget
from eckart.report.page.targets import targets_of


@dataclass(frozen=True)
class Chosen:
    """Ranks of all matrices (None where one is not taken), and totals."""

    ranks: list[int | None]
    params: int
    error: float


def choosable(analysis: Analysis) -> list[str]:
    """Kinds that the page lets a reader take."""
    kinds = list(analysis.by_kind())
    return kinds if analysis.kind == "adapter" else [kind for kind in kinds if kind in targets_of(analysis)["patterns"]]


def expected(analysis: Analysis, mode: str, value: float | str, kinds: list[str], item_bytes: int = 4) -> Chosen:
    """The choice for an analysis, with factors of `item_bytes` a parameter."""
    where = analysis.places()
    taken = {m.name: m.spectrum for m in analysis.matrices if where[m.name].kind in kinds}
    if mode == "budget":
        budget = Budget.parse(str(value))
        left = max(0, budget.amount - HEADER_BYTES * len(taken)) // item_bytes if budget.in_bytes else budget.amount
        ranks = allocate(taken, budget_params=left).ranks
    else:
        ranks = {name: rule(spectrum, mode, value, analysis.kind) for name, spectrum in taken.items()}
    missed = whole = 0.0
    for name, spectrum in taken.items():  # one after the other, as the page adds
        energies = spectrum.energy_above[1].tolist()
        missed += energies[min(ranks[name], len(energies) - 1)]
        whole += energies[0]
    return Chosen(
        [ranks.get(matrix.name) for matrix in analysis.matrices],
        sum(rank * sum(taken[name].shape) for name, rank in ranks.items()),
        math.sqrt(missed / whole) if whole else 0.0,
    )


def rule(spectrum: Spectrum, mode: str, value, kind: str) -> int:
    """The rank of one matrix, as extract and resize choose it."""
    if mode == "rank":
        return value if kind == "adapter" else min(value, spectrum.max_rank) if spectrum.fro_norm else 0
    found = spectrum.rank_for_energy(value) if mode == "energy" else spectrum.rank_for_error(value)
    if found is None:
        return 0
    rank = found.upper if isinstance(found, RankBound) else found
    return rank if kind == "adapter" else max(1, rank)
