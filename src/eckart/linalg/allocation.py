"""Ranks for many matrices within one budget of parameters.

A rank of matrix l costs c_l = out + in parameters and its i-th rank gains w_l·σ_i² of energy. Taking single ranks in
descending order of gain over cost is the linear programme's solution at every budget it fills exactly, because gains
fall within a matrix and costs there are constant; elsewhere it misses less than the first rank that did not fit.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from eckart.errors import OptionError
from eckart.linalg.scaling import exponent_of, shifted, shifted_number
from eckart.linalg.spectra import Spectrum


@dataclass(frozen=True)
class Allocation:
    """Ranks within one budget.

    Attributes:
        ranks: rank of each matrix by name, zero included.
        params: their number of parameters.
        gap: upper bound of the energy (units of σ², or of σ² over one power of two for all matrices where squares leave
            the range of float64) that any other choice within the budget keeps beyond this one; zero if optimal. Below
            one singular value for complete spectra; partial ones add the width of their bounds.
        certain: False if spectra were partial and a value that was not computed might have been chosen.
        energy: energy of all matrices together, of which the gap is a share.
    """

    ranks: dict[str, int]
    params: int
    gap: float
    certain: bool
    energy: float

    @property
    def energy_gap_share(self) -> float:
        """`gap` as a share of `energy`."""
        return self.gap / self.energy if self.gap else 0.0

    @property
    def guarantee(self) -> str:
        """What is proved about the choice, in words."""
        if not self.certain:
            return "Best among the computed singular values; values that were not computed could change the choice."
        if self.gap == 0:
            return "Optimal: no choice of ranks within this budget preserves more energy."
        share = 100 * self.energy_gap_share
        shown = f"{share:.1f}" if share >= 10 else f"{max(share, 0.001):.2g}"
        return f"At most {shown}% more energy is possible within this budget."


def allocate(
    spectra: Mapping[str, Spectrum],
    *,
    budget_params: int,
    importance: Mapping[str, float] | None = None,
    rank_params: Mapping[str, int] | None = None,
) -> Allocation:
    """Distribute a budget of parameters over matrices so that the most energy is kept.

    Args:
        spectra: spectrum of each matrix by name, of shape `(out_features, in_features)`.
        budget_params: maximum number of parameters of all factors together.
        importance: weight of a matrix's energy by name, default 1.
        rank_params: parameters per rank of a matrix by name, default out + in.

    Returns:
        `Allocation`, whose `guarantee` says how close to the optimum it is.

    Raises:
        OptionError: the budget or an importance is negative.
    """
    weights = {name: (importance or {}).get(name, 1.0) for name in spectra}
    if budget_params < 0 or any(weight < 0 for weight in weights.values()):
        msg = f"`budget_params` and `importance` must not be negative, got {budget_params} and {importance}"
        raise OptionError(msg)
    names = list(spectra)
    costs = [(rank_params or {}).get(name, sum(spectra[name].shape)) for name in names]
    exponent = exponent_of(max((known.fro_norm for known in spectra.values()), default=0.0))
    values = [shifted(spectra[name].singular_values, -exponent) for name in names]
    gains = [weights[name] * each.square() for name, each in zip(names, values, strict=True)]
    none = torch.zeros(0, dtype=torch.float64)
    owners = torch.cat([none.long(), *(torch.full((len(gain),), i) for i, gain in enumerate(gains))])
    density = torch.cat([none, *(gain / cost for gain, cost in zip(gains, costs, strict=True))])
    # The order of values whose squares vanish next to the largest.
    small = torch.cat(
        [none, *(each * (weights[name] / cost) ** 0.5 for name, each, cost in zip(names, values, costs, strict=True))]
    )
    order = torch.argsort(small.where(density == 0, 0.0), descending=True, stable=True)
    order = order[torch.argsort(density[order], descending=True, stable=True)]
    ranks, left, best, barred = [0] * len(names), budget_params, 0.0, None
    for item in order.tolist():
        owner, value = int(owners[item]), float(density[item])
        if small[item] == 0:
            break
        if costs[owner] <= left:
            ranks[owner] += 1
            left -= costs[owner]
            best -= value * costs[owner] if barred is not None else 0.0
        elif barred is None:
            barred = value
            best = value * left  # what the linear programme gains by taking a fraction of this rank
    limit = barred or 0.0
    certain = all(
        _settled(spectra[name], weights[name] / cost, limit, exponent) for name, cost in zip(names, costs, strict=True)
    )
    equal = len(set(costs)) <= 1
    gap = 0.0 if equal or barred is None else max(0.0, best)
    gap += sum(_open_energy(spectrum, weights[name], exponent) for name, spectrum in spectra.items())
    params = budget_params - left
    energy = sum((weights[name] * shifted_number(spectra[name].fro_norm, -exponent) ** 2 for name in names), 0.0)
    return Allocation(dict(zip(names, ranks, strict=True)), params, gap, certain, energy)


def _open_energy(spectrum: Spectrum, weight: float, exponent: int) -> float:
    """Energy, over 4^exponent, by which the computed values may misjudge what a number of ranks keeps."""
    if spectrum.tail is None:
        return 0.0
    kept = shifted(spectrum.singular_values, -spectrum.exponent).square().cumsum(0)
    opened = float((spectrum.tail.energy_upper[1:] - kept).max()) + spectrum.tail.rounding
    return weight * shifted_number(opened, 2 * (spectrum.exponent - exponent))


def _settled(spectrum: Spectrum, weight: float, limit: float, exponent: int) -> bool:
    """Whether no value that was left out could have a gain over cost, `weight`·σ² over 4^exponent, above `limit`."""
    return spectrum.tail is None or weight * shifted_number(spectrum.tail.norm, -exponent) ** 2 <= limit
