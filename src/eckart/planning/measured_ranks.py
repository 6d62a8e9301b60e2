"""Ranks of each module from the spectra of an earlier fine-tune, within the parameters of one rank for all."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eckart.errors import MismatchError
from eckart.linalg import allocate
from eckart.operations import Analysis
from eckart.planning.counts import AdapterCount


@dataclass(frozen=True)
class MeasuredRanks:
    """Ranks that spectra ask for.

    Attributes:
        ranks: of each module by its path; 0 where a rank is better spent elsewhere.
        params: that they take.
        kept: share of the update's energy that they keep.
        kept_evenly: share that one rank for all keeps, with as many parameters.
        guarantee: what is proved about the choice, in words.
    """

    ranks: Mapping[str, int]
    params: int
    kept: float
    kept_evenly: float
    guarantee: str


def measured_ranks(path: str | Path, adapter: AdapterCount, *, rank: int) -> MeasuredRanks:
    """Share the parameters of `rank` on all modules so that most of an earlier update's energy is kept.

    Args:
        path: an analysis of a fine-tune minus its base, or of an adapter.
        adapter: the modules to adapt.
        rank: whose parameters are shared.

    Raises:
        SourceError, FileFormatError: there is no such analysis.
        MismatchError: it is of weights, which tell nothing of an update's rank, or of another model.
    """
    analysis = Analysis.load(path)
    if analysis.kind == "weights":
        msg = (
            f"{path} holds spectra of weights, which do not tell the rank of an update: analyse a fine-tune, "
            "eckart analyze TUNED --base BASE -o DIR"
        )
        raise MismatchError(msg)
    spectra = {m.name: m.spectrum for m in analysis.matrices if adapter.modules.get(m.name) == m.spectrum.shape}
    if missing := [name for name in adapter.modules if name not in spectra]:
        msg = f"{path} does not tell of every module that is adapted"
        raise MismatchError.listing(msg, [f"{name}: not there, or of another shape" for name in missing])
    budget = rank * sum(map(sum, adapter.modules.values()))
    found = allocate(spectra, budget_params=budget)
    total = sum(spectrum.fro_norm**2 for spectrum in spectra.values())

    def kept(ranks: Mapping[str, int]) -> float:
        lost = [float(spectra[name].energy_above[1][min(rank, spectra[name].max_rank)]) for name, rank in ranks.items()]
        return 1 - sum(lost) / total if total else 1.0

    evenly = dict.fromkeys(spectra, rank)
    return MeasuredRanks(found.ranks, found.params, kept(found.ranks), kept(evenly), found.guarantee)
