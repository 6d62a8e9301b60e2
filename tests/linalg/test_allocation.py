"""Ranks under a budget, against every combination of ranks there is."""

import itertools
import math

import numpy as np
import pytest
import torch

from eckart.errors import EckartError
from eckart.linalg import Spectrum, allocate, partial_spectrum
from eckart.linalg.spectra import Tail

from .planting import dense_values, one_to, planted, seeded


def complete(values, shape):
    values = torch.as_tensor(sorted(values, reverse=True), dtype=torch.float64)
    return Spectrum(values, shape, float(torch.linalg.vector_norm(values)))


def kept(spectra, ranks, weights=None):
    """Weighted energy of the leading values."""
    return sum(
        (weights or {}).get(name, 1.0) * math.fsum((known.singular_values[: ranks[name]] ** 2).tolist())
        for name, known in spectra.items()
    )


def cost(spectra, ranks):
    return sum(sum(known.shape) * ranks[name] for name, known in spectra.items())


def best(spectra, budget, weights=None):
    """The most energy that any ranks within the budget keep, by trying them all."""
    choices = itertools.product(*(range(len(known.singular_values) + 1) for known in spectra.values()))
    tried = (dict(zip(spectra, choice, strict=True)) for choice in choices)
    return max(kept(spectra, ranks, weights) for ranks in tried if cost(spectra, ranks) <= budget)


def random_case(seed, *, equal):
    """Three matrices with up to four values, some tied or zero, a budget, and weights of importance."""
    rng = np.random.default_rng(seed)
    sides = [(6, 5)] * 3 if equal else [tuple(rng.integers(4, 12, size=2).tolist()) for _ in range(3)]
    spectra = {f"m{i}": complete(rng.integers(0, 6, size=rng.integers(1, 5)), side) for i, side in enumerate(sides)}
    weights = {"m1": float(rng.choice([0.0, 0.5, 3.0]))}
    return spectra, int(rng.integers(0, 160)), weights


@pytest.mark.parametrize("equal", [True, False], ids=["equal costs", "unequal costs"])
def test_no_choice_of_ranks_keeps_more_energy_than_the_gap_allows(equal):
    optimal = short = 0
    for seed in range(150):
        spectra, budget, weights = random_case(seed, equal=equal)
        for importance in (None, weights):
            found = allocate(spectra, budget_params=budget, importance=importance)
            assert found.params == cost(spectra, found.ranks) <= budget
            have, most = kept(spectra, found.ranks, importance), best(spectra, budget, importance)
            assert found.gap >= 0
            assert most <= have + found.gap + 1e-9
            assert found.certain
            if found.guarantee.startswith("Optimal"):
                assert have == pytest.approx(most, rel=1e-12)
                optimal += 1
            short += have < most - 1e-9
    assert optimal == 300 if equal else 0 < optimal < 300
    assert short == 0 if equal else short > 0  # unequal costs make a knapsack, which is not always solved


@pytest.mark.parametrize("seed", range(40))
def test_the_gap_is_less_than_the_first_singular_value_that_did_not_fit(seed):
    spectra, budget, _ = random_case(seed, equal=False)
    found = allocate(spectra, budget_params=budget)
    refused = [
        float(known.singular_values[found.ranks[name]]) ** 2
        for name, known in spectra.items()
        if found.ranks[name] < len(known.singular_values)
    ]
    assert found.gap <= max(refused, default=0.0)


def test_the_gap_is_what_fractions_of_ranks_would_keep_more():
    for seed in range(60):
        spectra, budget, _ = random_case(seed, equal=False)
        found = allocate(spectra, budget_params=budget)
        items = [(float(s) ** 2, sum(known.shape)) for known in spectra.values() for s in known.singular_values]
        most, left = 0.0, budget
        for gain, params in sorted(items, key=lambda item: -item[0] / item[1]):
            most += gain * min(1.0, left / params)
            left -= min(left, params)
        assert found.gap == pytest.approx(most - kept(spectra, found.ranks), abs=1e-9)


def test_a_budget_for_everything_takes_every_value_that_is_not_zero():
    spectra = {"a": complete([3, 2, 0], (5, 3)), "b": complete([1, 1], (2, 4)), "zero": complete([0, 0], (2, 2))}
    found = allocate(spectra, budget_params=10_000)
    assert found.ranks == {"a": 2, "b": 2, "zero": 0}
    assert found.guarantee.startswith("Optimal")


@pytest.mark.parametrize("budget", [0, 7])
def test_a_budget_that_buys_nothing_gives_rank_zero(budget):
    found = allocate({"a": complete([3, 2], (5, 3))}, budget_params=budget)
    assert (found.ranks, found.params, found.certain) == ({"a": 0}, 0, True)


def test_no_matrices_share_nothing():
    found = allocate({}, budget_params=10)
    assert (found.ranks, found.params, found.gap, found.certain) == ({}, 0, 0.0, True)


def test_importance_moves_the_budget_where_it_is_laid():
    spectra = {"a": complete([2, 2], (4, 4)), "b": complete([1, 1], (4, 4))}
    assert allocate(spectra, budget_params=16).ranks == {"a": 2, "b": 0}
    assert allocate(spectra, budget_params=16, importance={"b": 5.0}).ranks == {"a": 0, "b": 2}
    assert allocate(spectra, budget_params=16, importance={"a": 0.0}).ranks == {"a": 0, "b": 2}


@pytest.mark.parametrize(("budget", "importance"), [(-1, None), (10, {"a": -0.5})])
def test_a_negative_budget_or_importance_is_refused(budget, importance):
    with pytest.raises(EckartError, match="must not be negative"):
        allocate({"a": complete([1], (2, 2))}, budget_params=budget, importance=importance)


def partial(values, shape, *, norm, slack=0.0):
    """A partial spectrum with hand-made limits: values right to `slack` of energy, the others at most `norm`."""
    values = torch.as_tensor(values, dtype=torch.float64)
    kept_energy = torch.cat([values.new_zeros(1), values.square().cumsum(0)])
    total = float(kept_energy[-1]) + norm**2
    return Spectrum(values, shape, total**0.5, tail=Tail(kept_energy + slack, norm, 0.0, 0.0))


@pytest.mark.parametrize(
    ("norm", "budget", "certain"),
    [
        (0.9, 12, True),  # 3 ranks of 4: the best left out has energy 1, the unknown at most 0.81
        (1.1, 12, False),
        (0.9, 16, False),  # all four known values fit exactly, and an unknown one could have been next
        (0.9, 1000, False),
        (0.0, 1000, True),
    ],
)
def test_values_not_computed_make_a_choice_uncertain_when_they_could_have_been_chosen(norm, budget, certain):
    spectra = {"a": partial([3.0, 1.0], (2, 2), norm=norm), "b": complete([2.0, 1.0], (2, 2))}
    found = allocate(spectra, budget_params=budget)
    assert found.certain == certain
    assert found.guarantee.startswith("Best among the computed") != certain


def test_values_that_are_only_bounded_leave_a_gap():
    spectra = {"a": partial([3.0, 2.0], (2, 2), norm=0.1, slack=0.25), "b": complete([2.1, 2.0], (2, 2))}
    found = allocate(spectra, budget_params=8)
    assert found.ranks == {"a": 1, "b": 1}  # yet the second value of a could be the larger
    assert found.gap == pytest.approx(0.25)
    # 0.25 of (9 + 4 + 0.01) + (2.1² + 4)
    assert found.guarantee == "At most 1.2% more energy is possible within this budget."


@pytest.mark.parametrize("seed", range(12))
def test_a_certain_choice_from_partial_spectra_is_within_its_gap_of_the_best_from_whole_ones(seed):
    rng = np.random.default_rng(seed)
    powers, sides = rng.uniform(0.3, 1.2, size=2), [(30, 24), (30, 24) if seed % 2 else (40, 20)]
    weights = [planted(one_to(min(side)) ** -p, side, seed=seed).float() for p, side in zip(powers, sides, strict=True)]
    whole = {f"m{i}": complete(dense_values(w).tolist(), tuple(w.shape)) for i, w in enumerate(weights)}
    known = {f"m{i}": partial_spectrum(w, rank=8, generator=seeded(seed)) for i, w in enumerate(weights)}
    for budget in (54, 120, 300, 500):
        found = allocate(known, budget_params=budget)
        if found.certain:
            assert best(whole, budget) <= kept(whole, found.ranks) + found.gap + 1e-12
    assert allocate(known, budget_params=120).certain
