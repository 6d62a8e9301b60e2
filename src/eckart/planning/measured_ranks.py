"""Ranks for each module from the spectra of an earlier fine-tune, with as many parameters as one rank for all."""

from collections.abc import Mapping
from pathlib import Path

from eckart.errors import MismatchError
from eckart.linalg import Allocation
from eckart.planning.architecture import AdapterCount
from eckart.training.rank_file import share_parameters, spectra_of_update


def measured_ranks(path: str | Path, adapter: AdapterCount, *, rank: int) -> tuple[Allocation, float, float]:
    """Distribute the parameters of `rank` on all modules so that as much as possible of an earlier update is kept.

    Args:
        path: an analysis of a fine-tune minus its base, or of an adapter.
        adapter: the modules to adapt.
        rank: the rank whose parameters are distributed.

    Returns:
        the rank of each module by its path, 0 where parameters are better spent elsewhere; the share of the update's
        energy that these ranks keep; and the share that `rank` everywhere keeps, with as many parameters.

    Raises:
        SourceError, FileFormatError: there is no such analysis.
        MismatchError: it is of weights, which do not show the rank of an update, or of another model.
    """
    found = spectra_of_update(path)
    spectra = {name: each for name, each in found.items() if adapter.modules.get(name) == each.shape}
    if missing := [name for name in adapter.modules if name not in spectra]:
        msg = f"{path} does not cover all adapted modules"
        raise MismatchError.listing(msg, [f"{name}: missing, or of a different shape" for name in missing])
    allocation = share_parameters(spectra, rank)
    largest = max(spectrum.fro_norm for spectrum in spectra.values()) or 1.0
    shares = {name: (spectrum.fro_norm / largest) ** 2 for name, spectrum in spectra.items()}
    total = sum(shares.values())

    def kept(ranks: Mapping[str, int]) -> float:
        lost = [spectra[name].error_bounds(rank)[1] ** 2 * shares[name] for name, rank in ranks.items()]
        return 1 - sum(lost) / total if total else 1.0

    evenly = dict.fromkeys(spectra, rank)
    return allocation, kept(allocation.ranks), kept(evenly)
