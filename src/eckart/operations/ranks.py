"""The rank of every layer of a new adapter, from the spectra of the updates: by a rule for each, or within one budget.

The experts of one parameter are written with the same rank: the highest that one of them needs, or their common share
of a budget.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from eckart.engine import Execution, Journal, Record, Task, run_resumable
from eckart.linalg import Allocation, RankBound, Spectrum, Tail, allocate, partial_spectrum, spectrum, spectrum_for
from eckart.linalg.rank import FULL_SPECTRUM_SIDE, Rule
from eckart.linalg.scaling import exponent_of, require_float64, shifted, shifted_number
from eckart.linalg.slabs import RowSlabs
from eckart.operations.costs import Costs
from eckart.operations.rank_choice import RankChoice
from eckart.operations.select_layers import parameter_of

PARTIAL_RANK = 256  # singular values of a large matrix that a budget considers before it needs all of them


@dataclass(frozen=True)
class Ranks:
    """Ranks chosen from spectra.

    Attributes:
        by_name: rank of each layer, 0 included.
        norms: ‖Δ‖_F of each update.
        guarantee: how much more energy another use of the budget could preserve; None without a budget.
    """

    by_name: Mapping[str, int]
    norms: Mapping[str, float]
    guarantee: str | None = None


def ranks_from_spectra(
    tasks: Callable[[Iterable[str], Callable[[str], Record]], list[Task[Record]]],
    spectrum_of: Callable[[str, bool], Spectrum],
    choice: RankChoice,
    *,
    costs: Costs,
    needed: Collection[str],
    execution: Execution,
    journal: Journal | None,
) -> Ranks:
    """Compute the spectra of all updates in parallel, as far as the choice needs them, and choose the ranks.

    Args:
        tasks: creates a task for each named layer from a function of its name.
        spectrum_of: the spectrum of an update by its name; complete if the second argument is True.
        choice: by energy, error or budget.
        costs: of the same layers.
        needed: layers that get rank 1 even where their update is zero or would not earn a rank.
        execution: how the tasks are run.
        journal: where the spectra are stored; a share computes its own and those that no other has stored yet.
    """

    def spectra_of(names: Iterable[str], stage: str, *, complete: bool) -> dict[str, Spectrum]:
        made = tasks(names, lambda name: _record_of(spectrum_of(name, complete)))
        kind = "complete spectrum of " if complete else "spectrum of "
        records = run_resumable(made, stage=stage, execution=execution, journal=journal, kind=kind, all_needed=True)
        return {name: _spectrum_in(records[name]) for name in names}

    spectra = spectra_of(costs.by_rank, "Reading spectra", complete=False)
    ranks, allocation = choose(spectra, choice, costs, needed)
    if allocation is not None and not allocation.certain:
        partial = [name for name, known in spectra.items() if not known.complete]
        spectra |= spectra_of(partial, "Completing spectra", complete=True)
        ranks, allocation = choose(spectra, choice, costs, needed)
    norms = {name: known.fro_norm for name, known in spectra.items()}
    return Ranks(ranks, norms, allocation.guarantee if allocation else None)


def _record_of(known: Spectrum) -> Record:
    """A spectrum as it is stored."""
    facts = {"shape": known.shape, "fro_norm": known.fro_norm, "dtype": str(known.dtype).removeprefix("torch.")}
    tensors = {"singular_values": known.singular_values}
    if known.tail is None:
        return Record(facts, tensors)
    tail = vars(known.tail).copy()
    return Record(facts | {"tail": tail}, tensors | {"energy_upper": tail.pop("energy_upper")})


def _spectrum_in(record: Record) -> Spectrum:
    facts, tensors = record.facts, record.tensors
    tail = Tail(tensors["energy_upper"], **facts["tail"]) if "tail" in facts else None
    rows, columns = facts["shape"]
    dtype = getattr(torch, facts["dtype"])
    return Spectrum(tensors["singular_values"], (rows, columns), facts["fro_norm"], dtype, tail)


def leading_spectrum(matrix: RowSlabs, name: str, choice: RankChoice, generator: torch.Generator) -> Spectrum:
    """The spectrum of a dense update as far as a choice is likely to need it."""
    if choice.budget is None:
        return spectrum_for(matrix, rule_of(choice), generator=generator)
    if min(matrix.shape) <= FULL_SPECTRUM_SIDE or parameter_of(name) != name:
        return spectrum(matrix)
    return partial_spectrum(matrix, rank=PARTIAL_RANK, generator=generator)


def choose(
    spectra: Mapping[str, Spectrum], choice: RankChoice, costs: Costs, needed: Collection[str]
) -> tuple[dict[str, int], Allocation | None]:
    """The rank of each layer by name, and how a budget is shared between them.

    Args:
        spectra: of each layer's update.
        choice: by energy, error or budget.
        costs: of the same layers.
        needed: layers that get rank 1 even where their update is zero or would not earn a rank.
    """
    groups: dict[str, list[str]] = {}
    for name in spectra:
        groups.setdefault(parameter_of(name), []).append(name)
    if choice.budget is None:
        ranks = {name: max(rank_by_rule(known, choice), int(name in needed)) for name, known in spectra.items()}
        return {name: max(ranks[each] for each in group) for group in groups.values() for name in group}, None
    first = {group for group, names in groups.items() if any(name in needed for name in names)}
    prices = {group: sum(costs.by_rank[name] for name in names) for group, names in groups.items()}
    together = {group: _together([spectra[name] for name in names]) for group, names in groups.items()}
    for group in first:
        together[group] = _without_first(together[group])
    left = choice.budget.amount - costs.fixed - sum(prices[group] for group in first)
    allocation = allocate(together, budget_params=max(left, 0), rank_params=prices)
    ranks = {group: allocation.ranks[group] + int(group in first) for group in groups}
    return {name: ranks[group] for group, names in groups.items() for name in names}, allocation


def rule_of(choice: RankChoice) -> Rule:
    """The function from a spectrum to a rank, for a choice by energy or error."""
    if choice.energy is not None:
        return lambda known: known.rank_for_energy(choice.energy or 1.0)
    return lambda known: known.rank_for_error(choice.error or 1.0)


def rank_by_rule(known: Spectrum, choice: RankChoice) -> int:
    """The rank of one matrix for a choice by energy or error; 0 for a zero matrix."""
    found = rule_of(choice)(known)
    return found.upper if isinstance(found, RankBound) else found or 0


def _together(spectra: list[Spectrum]) -> Spectrum:
    """A spectrum whose energies are those that each further rank of several matrices of one shape adds in total."""
    if len(spectra) == 1:
        return spectra[0]
    exponent = exponent_of(max(known.fro_norm for known in spectra))
    squares = torch.zeros(max(len(known.singular_values) for known in spectra), dtype=torch.float64)
    for known in spectra:
        squares[: len(known.singular_values)] += shifted(known.singular_values, -exponent).square()
    norm = require_float64(
        shifted_number(math.sqrt(float(squares.sum())), exponent), "the update of one parameter's experts"
    )
    return Spectrum(shifted(squares.sqrt(), exponent), spectra[0].shape, norm, spectra[0].dtype)


def _without_first(known: Spectrum) -> Spectrum:
    """The spectrum without its leading singular value."""
    if known.tail is None:
        return replace(known, singular_values=known.singular_values[1:])
    limits = known.tail.energy_upper
    first = shifted(known.singular_values[:1], -known.exponent).square()
    tail = replace(known.tail, energy_upper=limits[1:] - first)
    return replace(known, singular_values=known.singular_values[1:], tail=tail)
