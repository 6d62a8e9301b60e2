"""An adapter factored once, of which every lower rank is a slice."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.linalg import LowRank, Spectrum
from eckart.linalg.scaling import exponent_of, shifted
from eckart.operations.costs import Costs
from eckart.operations.rank_change import alpha_for, update_spectrum
from eckart.operations.rank_choice import Budget, RankChoice
from eckart.operations.ranks import choose


@dataclass(frozen=True)
class Truncations:
    """All truncations of an adapter.

    Attributes:
        adapter: its layers' factors are in the order of singular values.
        spectra: the spectrum of each layer's update.
    """

    adapter: Adapter
    spectra: Mapping[str, Spectrum]

    @classmethod
    def of(cls, adapter: Adapter, *, is_ordered: bool = False) -> "Truncations":
        """Factor every layer, unless its factors are in order already."""
        layers = {name: adapter[name] for name in adapter}
        spectra = {name: update_spectrum(name, layer, layer.unscaled()) for name, layer in layers.items()}
        if not is_ordered:
            layers = {name: _ordered(layer) for name, layer in layers.items()}
        return cls(replace(adapter, layers=layers, files=()), spectra)

    @property
    def highest_rank(self) -> int:
        """The highest rank of a layer."""
        return max(layer.rank for layer in self.adapter.values())

    def uniform(self, rank: int) -> dict[str, int]:
        """The same rank for every layer that has it."""
        return {name: min(rank, layer.rank) for name, layer in self.adapter.items()}

    def shared(self, rank: int) -> dict[str, int]:
        """Ranks with as many parameters as a uniform rank, shared so that they keep the most energy."""
        costs = self._costs
        budget = costs.fixed + sum(cost * min(rank, self.adapter[n].rank) for n, cost in costs.by_rank.items())
        choice = RankChoice(budget=Budget(budget, in_bytes=False))
        needed = [n for n, layer in self.adapter.items() if layer.bias is not None or layer.magnitude is not None]
        return choose(self.spectra, choice, costs, needed)[0]

    def lost(self, ranks: Mapping[str, int]) -> float:
        """The share of the squared update that truncation to some ranks loses."""
        exponent = exponent_of(max(known.fro_norm for known in self.spectra.values()))
        total = missed = 0.0
        for name, known in self.spectra.items():
            squares = shifted(known.singular_values, -exponent).square()
            total += float(squares.sum())
            missed += float(squares[ranks[name] :].sum())
        return missed / total if total else 0.0

    def at(self, ranks: Mapping[str, int]) -> Adapter:
        """The adapter at some ranks; layers of rank 0 are left out."""
        layers = {name: _sliced(layer, ranks[name]) for name, layer in self.adapter.items() if ranks[name]}
        return replace(self.adapter, layers=layers)

    @cached_property
    def _costs(self) -> Costs:
        return Costs.of_adapter(self.adapter.outline(), list(self.adapter), None, in_bytes=False)


def _ordered(layer: AdapterLayer) -> AdapterLayer:
    """The layer with the factors of its SVD, of its own rank."""
    U, S, Vh = layer.unscaled().svd()
    if missing := layer.rank - len(S):  # a rank above the shorter side
        U = torch.cat([U, U.new_zeros(len(U), missing)], dim=1)
        S, Vh = torch.cat([S, S.new_zeros(missing)]), torch.cat([Vh, Vh.new_zeros(missing, Vh.shape[1])])
    return layer.with_product(LowRank.from_svd(U, S, Vh))


def _sliced(layer: AdapterLayer, rank: int) -> AdapterLayer:
    A, B = layer.lora_A[:rank], layer.lora_B[:, :rank]
    alpha = alpha_for(layer.scaling, rank, rslora=layer.rslora)
    return replace(layer, lora_A=A.contiguous(), lora_B=B.contiguous(), alpha=alpha)
