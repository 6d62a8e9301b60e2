"""What a combination will combine, module by module, checked from headers."""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.adapter.adapter import Adapter
from eckart.adapter.outline import AdapterOutline, LayerOutline
from eckart.checkpoint import Checkpoint, DType, MatrixView
from eckart.checkpoint.dtypes import promote
from eckart.formats.peft_config import is_trained_bias
from eckart.operations.combination.frame import combined_frame
from eckart.operations.combination.mixture import Mixture
from eckart.operations.costs import Costs, break_even_note
from eckart.operations.preview import Match, Preview
from eckart.operations.rank_choice import HEADER_BYTES, RankChoice
from eckart.operations.select_layers import shapes_of
from eckart.result import Skipped

if TYPE_CHECKING:
    from eckart.operations.placement import Term


@dataclass(frozen=True)
class CombinePlan:
    """A combination, checked from headers.

    Attributes:
        adapters: those whose weight is not zero, with common module names.
        weights: of the same adapters.
        mixture: how updates of one module are combined.
        choice: of the ranks; None keeps those of an exact sum.
        base: the model; needed for DoRA layers and tensors saved in full.
        dtype: of the factors; None is the widest of the inputs.
        skipped: adapters of weight zero.
        files: of every adapter, also of weight zero.
    """

    adapters: tuple[Adapter, ...]
    weights: tuple[float, ...]
    mixture: Mixture
    choice: RankChoice | None
    base: Checkpoint | None
    dtype: DType | None
    skipped: tuple[Skipped, ...] = ()
    files: tuple[Path, ...] = ()

    made_by = "combine"

    @cached_property
    def outlines(self) -> tuple[AdapterOutline, ...]:
        """The headers of the adapters."""
        return tuple(adapter.outline() for adapter in self.adapters)

    @cached_property
    def terms(self) -> dict[str, tuple[int, ...]]:
        """Indices of the adapters that update each module."""
        names = dict.fromkeys(name for outline in self.outlines for name in outline)
        return {name: tuple(i for i, each in enumerate(self.outlines) if name in each) for name in names}

    @cached_property
    def savers(self) -> dict[str, tuple[int, ...]]:
        """Indices of the adapters that save each tensor in full."""
        names = dict.fromkeys(name for outline in self.outlines for name in outline.modules_to_save)
        return {n: tuple(i for i, each in enumerate(self.outlines) if n in each.modules_to_save) for n in names}

    @cached_property
    def adders(self) -> dict[str, tuple[int, ...]]:
        """Indices of the adapters that add to each tensor."""
        names = dict.fromkeys(name for outline in self.outlines for name in outline.added)
        return {name: tuple(i for i, each in enumerate(self.outlines) if name in each.added) for name in names}

    def is_copy_of_base(self, name: str) -> bool:
        """Whether a saved tensor is the base's own: that of a module that its adapters update, the same in all of them.

        PEFT saves the weights of embeddings and output layers next to their updates.
        """
        savers, module = self.savers[name], name.rpartition(".")[0]
        is_trained = any(is_trained_bias(name, self.outlines[i]) for i in savers)
        if is_trained or not set(savers) <= set(self.terms.get(module, ())):
            return False
        import torch

        first, *others = (self.adapters[i].modules_to_save[name] for i in savers)
        return all(torch.equal(first, other) for other in others)

    @cached_property
    def placed(self) -> "dict[tuple[int, str], tuple[Term, str, MatrixView | None]]":
        """Where every key of each adapter belongs, by index and key; empty without a base.

        A value is the term, the tensor of the base, and its view, None if it is not a matrix.
        """
        if self.base is None:
            return {}
        from eckart.operations.placement import find_places

        places = find_places(self.base, self.outlines)
        return {
            (term.adapter, term.key): (term, tensor, places.views.get(matrix))
            for tensor, matrices in places.changes.items()
            for matrix, terms in matrices.items()
            for term in terms
            if term.part != "bias"
        }

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shape of each module's update."""
        return {name: shapes_of(self.outlines[terms[0]], [name])[name] for name, terms in self.terms.items()}

    def layers(self, name: str) -> list[LayerOutline]:
        """Headers of the layers that update a module."""
        return [self.outlines[i][name] for i in self.terms[name]]

    def is_unchanged(self, name: str) -> bool:
        """Whether a module's update is that of one adapter, with weight 1."""
        return len(self.terms[name]) == 1 and self.weights[self.terms[name][0]] == 1 and self.mixture.method == "sum"

    @cached_property
    def keeps_dora(self) -> bool:
        """Whether DoRA layers may stay DoRA: nothing is added to one, and PEFT can write them next to each other."""
        unchanged = all(self.is_unchanged(name) for name in self.terms)
        all_dora = all(layer.magnitude is not None for outline in self.outlines for layer in outline.values())
        return unchanged and (len(self.adapters) == 1 or all_dora)

    def is_dense(self, name: str) -> bool:
        """Whether a module's update must be formed as a matrix: it is pruned, or a DoRA layer's is not a product."""
        dora = any(layer.magnitude is not None for layer in self.layers(name)) and not self.keeps_dora
        return not (self.mixture.method == "sum" or self.mixture.is_in_core) or dora

    def max_rank(self, name: str) -> int:
        """The rank of a module's update in the result, at most."""
        ranks, limit = [layer.rank for layer in self.layers(name)], min(self.shapes[name])
        if self.is_dense(name):
            return min(self.choice.rank or limit if self.choice else max(ranks), limit)
        if self.mixture.method == "shared":
            return min(self.choice.rank if self.choice and self.choice.rank else max(ranks), limit)
        if self.mixture.method == "tsv":
            ranks = [min(rank, max(1, limit // len(ranks))) for rank in ranks]
        most = ranks[0] if len(ranks) == 1 and not self.mixture.is_in_core else min(sum(ranks), limit)
        return min(self.choice.rank or most, most) if self.choice else most

    def dtype_of(self, name: str) -> DType:
        """The data type of a module's factors in the result."""
        factors = [factor for layer in self.layers(name) for factor in (layer.lora_A, layer.lora_B)]
        return self.dtype or promote(*(factor.dtype for factor in factors))

    def costs(self, *, in_bytes: bool) -> Costs:
        """The cost of one rank of each layer, and of everything else."""
        by_rank, fixed = {}, 0
        for name in self.terms:
            first, *_ = layers = self.layers(name)
            width = self.dtype_of(name).itemsize if in_bytes else 1
            by_rank[name] = width * (prod(first.lora_A.shape[1:]) + first.lora_B.numel() // first.rank)
            bias = next((layer.bias for layer in layers if layer.bias is not None), None)
            for vector in (bias, first.magnitude if self.keeps_dora else None):
                if vector is not None:
                    fixed += vector.nbytes if in_bytes else vector.numel()
        for name, terms in self.savers.items():
            tensors = [self.outlines[i].modules_to_save[name] for i in terms]
            width = promote(*(tensor.dtype for tensor in tensors)).itemsize if in_bytes else 1
            fixed += width * tensors[0].numel()
        headers = HEADER_BYTES * (len(self.terms) + len(self.savers)) if in_bytes else 0
        return Costs(by_rank, fixed + headers)

    def preview(self) -> Preview:
        """What would be combined, read and written."""
        from_headers = self.choice is None or self.choice.rank is not None
        matches = [
            Match(
                name,
                self.shapes[name],
                tuple(outline[name].rank if name in outline else 0 for outline in self.outlines),
                self.max_rank(name) if from_headers else None,
            )
            for name in self.terms
        ]
        read = sum(outline.nbytes for outline in self.outlines)
        notes = self.notes() if from_headers else ["The spectra decide the ranks."]
        return Preview("combine", matches, self.skipped, read, self.written_bytes(), notes)

    def notes(self) -> list[str]:
        """Notes about ranks, for the user to see before the work starts."""
        if self.choice is not None and self.choice.rank is None:
            return []
        note = break_even_note((shape, self.max_rank(name)) for name, shape in self.shapes.items())
        return [note] if note else []

    def written_bytes(self) -> int:
        """Size of the result's tensors, at most."""
        ranks, headers = {name: self.max_rank(name) for name in self.terms}, len(self.terms) + len(self.savers)
        most = self.costs(in_bytes=True).total(ranks) - HEADER_BYTES * headers
        budget = self.choice.budget if self.choice else None
        return min(most, budget.amount) if budget and budget.in_bytes else most

    @property
    def frame(self) -> Adapter:
        """The result without layers and tensors."""
        return combined_frame(self.adapters, self.outlines)

    @property
    def inputs(self) -> list[Path]:
        """Files that are read."""
        return [*(self.base.files if self.base else ()), *self.files]

    def needed(self) -> set[str]:
        """Layers that are written even if their update is zero, for their bias or magnitude."""
        return {
            name
            for name in self.terms
            if any(layer.bias is not None for layer in self.layers(name))
            or (self.keeps_dora and self.layers(name)[0].magnitude is not None)
        }
