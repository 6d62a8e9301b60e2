"""What a combination puts together, module by module, known and checked from headers before anything is read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import fsum

import torch
from torch import Tensor

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.adapter.deferred import Deferred
from eckart.checkpoint import Checkpoint, MatrixView
from eckart.errors import MismatchError
from eckart.operations.combination.mixture import Mixture
from eckart.operations.placement import Term, find_places
from eckart.operations.preview import Match, Preview
from eckart.operations.rank_choice import RankChoice
from eckart.operations.ranks import Costs
from eckart.operations.select_layers import shapes_of


@dataclass(frozen=True)
class Placed:
    """The tensor of the base that a key of an adapter belongs to; None is the view of what is no matrix."""

    term: Term
    tensor: str
    view: MatrixView | None


@dataclass(frozen=True)
class CombinePlan:
    """A combination that is known to be possible.

    Attributes:
        adapters: those whose weight is not zero.
        weights: of the same.
        mixture: how updates of one module become one.
        choice: of the ranks; None keeps what an exact sum has.
        base: what DoRA layers, and tensors saved whole, are differences from.
        dtype: of the factors; None is the widest of those that are put together.
    """

    adapters: tuple[Adapter, ...]
    weights: tuple[float, ...]
    mixture: Mixture
    choice: RankChoice | None
    base: Checkpoint | None
    dtype: torch.dtype | None

    @cached_property
    def outlines(self) -> tuple[Adapter, ...]:
        """The adapters without their data."""
        return tuple(adapter.outline() for adapter in self.adapters)

    @cached_property
    def terms(self) -> dict[str, tuple[int, ...]]:
        """Places of the adapters that update each module."""
        names = dict.fromkeys(name for outline in self.outlines for name in outline)
        return {name: tuple(i for i, each in enumerate(self.outlines) if name in each) for name in names}

    @cached_property
    def savers(self) -> dict[str, tuple[int, ...]]:
        """Places of the adapters that save each whole tensor."""
        names = dict.fromkeys(name for outline in self.outlines for name in outline.modules_to_save)
        return {n: tuple(i for i, each in enumerate(self.outlines) if n in each.modules_to_save) for n in names}

    @cached_property
    def placed(self) -> dict[tuple[int, str], Placed]:
        """Where every key of each adapter, by its place, belongs in the base; nowhere without one."""
        if self.base is None:
            return {}
        places = find_places(self.base, self.outlines)
        return {
            (term.adapter, term.key): Placed(term, tensor, places.views.get(matrix))
            for tensor, matrices in places.changes.items()
            for matrix, terms in matrices.items()
            for term in terms
            if term.part != "bias"
        }

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shape of each module's update."""
        return {name: shapes_of(self.outlines[terms[0]], [name])[name] for name, terms in self.terms.items()}

    def is_alone(self, name: str) -> bool:
        """Whether a module's update is that of one adapter, as it is."""
        return len(self.terms[name]) == 1 and self.weights[self.terms[name][0]] == 1 and self.mixture.method == "sum"

    @cached_property
    def keeps_dora(self) -> bool:
        """Whether DoRA layers may stay DoRA: nothing is added to one, and PEFT can write them side by side."""
        alone = all(self.is_alone(name) for name in self.terms)
        all_dora = all(layer.magnitude is not None for outline in self.outlines for layer in outline.values())
        return alone and (len(self.adapters) == 1 or all_dora)

    def is_dense(self, name: str) -> bool:
        """Whether a module's update has to be formed whole: it is pruned, or a DoRA layer's is no product."""
        layers = [self.outlines[i][name] for i in self.terms[name]]
        dora = any(layer.magnitude is not None for layer in layers) and not self.keeps_dora
        return self.mixture.method != "sum" or dora

    def max_rank(self, name: str) -> int:
        """The rank of a module's update in the result, at most."""
        ranks, limit = [self.outlines[i][name].rank for i in self.terms[name]], min(self.shapes[name])
        if self.is_dense(name):
            return min(self.choice.rank or limit if self.choice else max(ranks), limit)
        most = ranks[0] if len(ranks) == 1 else min(sum(ranks), limit)
        return min(self.choice.rank or most, most) if self.choice else most

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype of a module's factors in the result."""
        layers = [self.outlines[i][name] for i in self.terms[name]]
        return self.dtype or widest([factor for layer in layers for factor in (layer.lora_A, layer.lora_B)])

    def outline(self) -> Adapter:
        """The result without its data, every layer at the rank that it has at most."""
        layers = {}
        for name, terms in self.terms.items():
            layer, rank = self.outlines[terms[0]][name], self.max_rank(name)
            A, B = layer.lora_A, layer.lora_B
            parts = {
                "lora_A": A.new_empty(rank, *A.shape[1:], dtype=self.dtype_of(name)),
                "lora_B": B.new_empty(len(B), rank, *B.shape[2:], dtype=self.dtype_of(name)),
                "magnitude": layer.magnitude if self.keeps_dora else None,
                "bias": next((b for i in terms if (b := self.outlines[i][name].bias) is not None), None),
            }
            layers[name] = replace(layer, **parts)
        return replace(self.outlines[0], layers=layers, modules_to_save=self.saved().outlines)

    def costs(self, *, in_bytes: bool) -> Costs:
        """What each rank of each layer takes, and everything else altogether."""
        return Costs.of(self.outline(), list(self.terms), None, in_bytes=in_bytes)

    def preview(self) -> Preview:
        """What would be put together, read and written."""
        matches = [
            Match(name, self.shapes[name], tuple(o[name].rank if name in o else 0 for o in self.outlines))
            for name in self.terms
        ]
        read = sum(outline.nbytes for outline in self.outlines)
        return Preview("combine", matches, [], read, self.written_bytes())

    def written_bytes(self) -> int:
        """Bytes of the result's tensors, at most."""
        most, budget = self.outline().nbytes, self.choice.budget if self.choice else None
        return min(most, budget.amount) if budget and budget.in_bytes else most

    def frame(self) -> Adapter:
        """The result but for its layers: what is told of the first adapter, and all tensors saved whole."""
        first = self.adapters[0]
        bias = next((mode for each in self.adapters if (mode := each.config.get("bias", "none")) != "none"), None)
        return replace(
            first,
            modules_to_save=self.saved(),
            base_model=next((each.base_model for each in self.adapters if each.base_model), None),
            task_type=next((each.task_type for each in self.adapters if each.task_type), None),
            config=first.config | ({"bias": bias} if bias else {}),
        )

    def saved(self) -> Deferred[Tensor]:
        """Tensors saved whole: base + Σ w·(saved − base), read when they are looked up."""

        def read(name: str) -> Tensor:
            terms = self.savers[name]
            tensors = [self.adapters[i].modules_to_save[name] for i in terms]
            weights = [self.weights[i] for i in terms]
            if weights == [1.0]:
                return tensors[0]
            total = sum(tensor.double() * weight for tensor, weight in zip(tensors, weights, strict=True))
            if fsum(weights) != 1 and self.base is not None:
                tensor = self.placed[terms[0], name].tensor
                stored = self.base.tied.get(tensor, tensor)
                total += (1 - fsum(weights)) * self.base.read(stored).double()
            return torch.as_tensor(total).to(widest(tensors))

        outlines = {}
        for name, terms in self.savers.items():
            tensors = [self.outlines[i].modules_to_save[name] for i in terms]
            outlines[name] = tensors[0].new_empty(tensors[0].shape, dtype=widest(tensors))
        return Deferred(outlines, read)

    def needed(self) -> set[str]:
        """Layers that stay even where their update is zero: they hold more than that."""
        outline = self.outline()
        return {name for name, layer in outline.items() if layer.bias is not None or layer.magnitude is not None}

    def check(self) -> None:
        """Refuse what cannot be put together.

        Raises:
            MismatchError: every module and tensor that does not fit, with its reason.
            OptionError: the budget cannot be kept.
        """
        faults = [*self._layer_faults(), *self._saved_faults()]
        if faults:
            msg = "these adapters cannot be combined"
            raise MismatchError.listing(msg, faults)
        _ = self.placed  # which refuses what has no place in the base
        if self.choice is not None and (budget := self.choice.budget) is not None:
            self.costs(in_bytes=budget.in_bytes).check(budget, self.needed())

    def _layer_faults(self) -> Iterator[str]:
        models = dict.fromkeys(adapter.base_model for adapter in self.adapters)
        whose = f"; the adapters name the models {', '.join(map(str, models))}" if len(models) > 1 else ""
        for name, terms in self.terms.items():
            layers = [self.outlines[i][name] for i in terms]
            for say, of in (("kinds", _kind), ("shapes", _shape)):
                found = [of(layer) for layer in layers]
                if any(each != found[0] for each in found):
                    told = ", ".join(f"{each} in adapter {i + 1}" for i, each in zip(terms, found, strict=True))
                    yield f"{name}: the {say} differ: {told}{whose}"
                    break
            if f"{name}.weight" in self.savers:
                yield f"{name}: one adapter updates it, and another saves it whole"
            if self.base is None and not self.keeps_dora and any(layer.magnitude is not None for layer in layers):
                yield f"{name}: DoRA: what it adds depends on the weight, so give the base with --base"

    def _saved_faults(self) -> Iterator[str]:
        for name, terms in self.savers.items():
            shapes = {tuple(self.outlines[i].modules_to_save[name].shape) for i in terms}
            weight = fsum(self.weights[i] for i in terms)
            if len(shapes) > 1:
                yield f"{name}: saved whole in the shapes {' and '.join(map(str, sorted(shapes)))}"
            elif weight != 1 and self.base is None:
                yield (
                    f"{name}: saved whole with weights that sum to {weight:g}, so the base has a share in it: "
                    "give it with --base"
                )


def widest(tensors: Sequence[Tensor]) -> torch.dtype:
    """The dtype that holds every value of all of them."""
    dtype = tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _kind(layer: AdapterLayer) -> str:
    return layer.kind


def _shape(layer: AdapterLayer) -> tuple[int, ...]:
    return (*layer.lora_B.shape[:1], *layer.lora_A.shape[1:])
