"""The rank of every layer of an adapter that is made from others: by a rule for each, or within one budget.

The experts of one parameter are written with one rank, so they get one: the highest that one of them asks for, or
the share of a budget that all of them together earn.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch

from eckart.adapter.adapter import Adapter
from eckart.errors import OptionError
from eckart.linalg import RankBound, Spectrum, allocate
from eckart.linalg.rank import Rule
from eckart.operations.rank_choice import HEADER_BYTES, Budget, RankChoice


@dataclass(frozen=True)
class Costs:
    """What the parts of an adapter take, in bytes or parameters.

    Attributes:
        by_rank: one rank of each layer whose rank is to be chosen.
        fixed: everything else: magnitudes, biases, tensors saved whole, headers.
    """

    by_rank: Mapping[str, int]
    fixed: int

    @classmethod
    def of(cls, adapter: Adapter, names: Collection[str], dtype: torch.dtype | None, *, in_bytes: bool) -> "Costs":
        """The costs of an adapter's layers.

        Args:
            adapter: an outline.
            names: of the layers whose rank is to be chosen.
            dtype: of their factors; None is that of the present ones.
            in_bytes: whether a cost is bytes of the file rather than parameters.
        """
        by_rank, total = {}, adapter.nbytes if in_bytes else adapter.params
        for name in names:
            for factor in (adapter[name].lora_A, adapter[name].lora_B):
                total -= factor.nbytes if in_bytes else factor.numel()
                width = (dtype or factor.dtype).itemsize if in_bytes else 1
                by_rank[name] = by_rank.get(name, 0) + width * (factor.numel() // adapter[name].rank)
        headers = HEADER_BYTES * (len(adapter) + len(adapter.modules_to_save)) if in_bytes else 0
        return cls(by_rank, total + headers)

    def check(self, budget: Budget, needed: Collection[str]) -> None:
        """Refuse a budget that cannot hold what is fixed and the least of ranks.

        Raises:
            OptionError: the message says what they take.
        """
        least = self.fixed + (sum(map(self.by_rank.__getitem__, needed)) or min(self.by_rank.values()))
        if budget.amount < least:
            unit = "bytes" if budget.in_bytes else "parameters"
            msg = (
                f"--budget: {budget.amount:,} {unit} are too few: what has no rank and the smallest ranks take "
                f"{least:,}; raise the budget"
            )
            raise OptionError(msg)


def choose(
    spectra: Mapping[str, Spectrum], choice: RankChoice, costs: Costs, needed: Collection[str]
) -> tuple[dict[str, int], str | None]:
    """The rank of each layer by name, and what is proved of a shared budget.

    Args:
        spectra: of each layer's update.
        choice: by energy, error or budget.
        costs: of the same layers.
        needed: layers that get a rank of one even where their update is zero or would earn none.
    """
    groups: dict[str, list[str]] = {}
    for name in spectra:
        groups.setdefault(parameter_of(name), []).append(name)
    if choice.budget is None:
        own = {name: max(_by_rule(spectrum, choice), int(name in needed)) for name, spectrum in spectra.items()}
        return {name: max(own[each] for each in group) for group in groups.values() for name in group}, None
    first = {group for group, names in groups.items() if any(name in needed for name in names)}
    prices = {group: sum(costs.by_rank[name] for name in names) for group, names in groups.items()}
    together = {group: _together([spectra[name] for name in names]) for group, names in groups.items()}
    for group in first:
        together[group] = replace(together[group], singular_values=together[group].singular_values[1:])
    left = choice.budget.amount - costs.fixed - sum(prices[group] for group in first)
    allocation = allocate(together, budget_params=max(left, 0), rank_params=prices)
    ranks = {group: allocation.ranks[group] + int(group in first) for group in groups}
    return {name: ranks[group] for group, names in groups.items() for name in names}, allocation.guarantee


def parameter_of(name: str) -> str:
    """The parameter that an expert is a slice of, such as `experts.gate_up_proj` of `experts.gate_up_proj[3]`."""
    return name.partition("[")[0]


def rule_of(choice: RankChoice) -> Rule:
    """What a choice by energy or error reads off the spectrum of one matrix."""
    if choice.energy is not None:
        return lambda known: known.rank_for_energy(choice.energy or 1.0)
    return lambda known: known.rank_for_error(choice.error or 1.0)


def _by_rule(spectrum: Spectrum, choice: RankChoice) -> int:
    found = rule_of(choice)(spectrum)
    return found.upper if isinstance(found, RankBound) else found or 0


def _together(spectra: list[Spectrum]) -> Spectrum:
    """What one more rank of several matrices of one shape gains, as the spectrum of one."""
    if len(spectra) == 1:
        return spectra[0]
    squares = torch.zeros(max(len(spectrum.singular_values) for spectrum in spectra), dtype=torch.float64)
    for spectrum in spectra:
        squares[: len(spectrum.singular_values)] += spectrum.singular_values.square()
    return Spectrum(squares.sqrt(), spectra[0].shape, float(squares.sum()) ** 0.5, spectra[0].dtype)
