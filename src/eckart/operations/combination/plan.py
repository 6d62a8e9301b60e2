"""What a combination will combine, module by module, checked from headers."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import fsum, prod
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.adapter.adapter import Adapter
from eckart.adapter.outline import AdapterOutline, LayerOutline
from eckart.checkpoint import Checkpoint, DType, MatrixView
from eckart.checkpoint.dtypes import promote
from eckart.checkpoint.fused_experts import with_fused_experts
from eckart.checkpoint.open import ModelSource
from eckart.errors import MismatchError, OptionError
from eckart.formats.common_names import to_common_names
from eckart.formats.lora_writing import merged_config
from eckart.formats.peft_config import is_trained_bias
from eckart.formats.peft_experts import expert_of
from eckart.formats.peft_tokens import FIELD, embedding_of, is_token_rows, tokens_of
from eckart.formats.sources import open_adapter, open_model
from eckart.operations.combination.mixture import Method, Mixture
from eckart.operations.costs import Costs, break_even_note
from eckart.operations.fitting import deepened, repeated_layers, without_zero_biases
from eckart.operations.layer_scales import scaled_where_found
from eckart.operations.output_dtype import float_dtype
from eckart.operations.preview import Match, Preview
from eckart.operations.rank_choice import HEADER_BYTES, Budget, RankChoice
from eckart.operations.select_layers import shapes_of
from eckart.operations.weights import checked_weights
from eckart.result import Skipped

if TYPE_CHECKING:
    import torch

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
        return self.mixture.method != "sum" or dora

    def max_rank(self, name: str) -> int:
        """The rank of a module's update in the result, at most."""
        ranks, limit = [layer.rank for layer in self.layers(name)], min(self.shapes[name])
        if self.is_dense(name):
            return min(self.choice.rank or limit if self.choice else max(ranks), limit)
        most = ranks[0] if len(ranks) == 1 else min(sum(ranks), limit)
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
        """The result without layers and tensors: the first adapter's metadata, completed from the others."""
        first = self.adapters[0]
        bias = next((mode for each in self.adapters if (mode := each.config.get("bias", "none")) != "none"), None)
        fields = [found for each in self.adapters if (found := each.config.get(FIELD))]
        tokens = fields[0] if fields else None
        if any(field != tokens for field in fields):
            rows = ((name, each) for each in self.outlines for name in each.modules_to_save if is_token_rows(name))
            tokens = {embedding_of(name).removesuffix(".weight"): _tokens(name, each) for name, each in rows}
        return replace(
            first,
            layers={},
            modules_to_save={},
            added={},
            carried={name: tensor for each in reversed(self.adapters) for name, tensor in each.carried.items()},
            base_model=next((each.base_model for each in self.adapters if each.base_model), None),
            task_type=next((each.task_type for each in self.adapters if each.task_type), None),
            config=first.config
            | ({"bias": bias} if bias else {})
            | ({FIELD: tokens} if tokens else {})
            | merged_config(self.adapters),
        )

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

    def check(self) -> None:
        """Refuse adapters that cannot be combined.

        Raises:
            MismatchError: every module and tensor that does not fit, with the reason.
            OptionError: the budget is too small.
        """
        faults = [*self._layer_faults(), *self._saved_faults(), *self._added_faults()]
        if faults:
            msg = "these adapters cannot be combined"
            raise MismatchError.listing(msg, faults)
        _ = self.placed  # refuses keys that do not fit the base
        if self.choice is not None and (budget := self.choice.budget) is not None:
            self.costs(in_bytes=budget.in_bytes).check(budget, self.needed())

    def _layer_faults(self) -> Iterator[str]:
        models = dict.fromkeys(adapter.base_model for adapter in self.adapters)
        names = f"; the adapters name the models {', '.join(map(str, models))}" if len(models) > 1 else ""
        all_layers = (layer for outline in self.outlines for layer in outline.values())
        biased = self.adapters[0].format == "peft" and any(layer.bias is not None for layer in all_layers)
        for name, terms in self.terms.items():
            layers = self.layers(name)
            for what, property_of in (("kinds", _kind), ("shapes", _shape)):
                values = [property_of(layer) for layer in layers]
                if any(value != values[0] for value in values):
                    each = ", ".join(f"{value} in adapter {i + 1}" for i, value in zip(terms, values, strict=True))
                    yield f"{name}: the {what} differ: {each}{names}"
                    break
            if biased and layers[0].kind in ("embedding", "expert"):
                yield f"{name}: other modules have a trained bias (lora_bias), which PEFT cannot mix with this kind"
            if set(self.savers.get(f"{name}.weight", ())) - set(terms):
                yield f"{name}: one adapter updates it, and another saves it in full"
            if self.base is None and not self.keeps_dora and any(layer.magnitude is not None for layer in layers):
                yield f"{name}: a DoRA layer, whose update depends on the weight; give the model as `base`"

    def _saved_faults(self) -> Iterator[str]:
        for name, terms in self.savers.items():
            shapes = {tuple(self.outlines[i].modules_to_save[name].shape) for i in terms}
            weight = fsum(self.weights[i] for i in terms)
            if len(shapes) > 1:
                yield f"{name}: saved in full with the shapes {' and '.join(map(str, sorted(shapes)))}"
            elif is_token_rows(name):
                yield from self._rows_faults(name, weight)
            elif weight != 1 and self.base is None and not self.is_copy_of_base(name):
                yield (
                    f"{name}: saved in full with weights that sum to {weight:g}, so the result depends on the "
                    "model's tensor; give the model as `base`"
                )

    def _added_faults(self) -> Iterator[str]:
        for name, terms in self.adders.items():
            shapes = {tuple(self.outlines[i].added[name].shape) for i in terms}
            if len(shapes) > 1:
                yield f"{name}: differences with the shapes {' and '.join(map(str, sorted(shapes)))}"
        counts = Counter(name for outline in self.outlines for name in outline.carried)
        yield from (f"{name}: several adapters carry it, and one file has one" for name, n in counts.items() if n > 1)

    def _rows_faults(self, name: str, weight: float) -> Iterator[str]:
        tokens = [_tokens(name, outline) for outline in self.outlines if name in outline.modules_to_save]
        embedding = embedding_of(name)
        if embedding in self.savers or embedding.removesuffix(".weight") in self.terms:
            yield f"{name}: one adapter trains single tokens, and another changes all of them"
        elif any(each != tokens[0] for each in tokens):
            yield f"{name}: the adapters train different tokens ({FIELD})"
        elif weight != 1:
            yield f"{name}: rows of tokens with weights that sum to {weight:g}; they must sum to 1"


def plan_combine(
    adapters: Sequence[Adapter | str | Path],
    *,
    weights: Sequence[float] | None = None,
    method: Method = "sum",
    density: float | None = None,
    rank: int | RankChoice | None = None,
    energy: float | None = None,
    error: float | None = None,
    budget: str | int | Budget | None = None,
    base: "ModelSource | None" = None,
    scale: Mapping[str, float] | None = None,
    dtype: "str | torch.dtype | None" = None,
) -> CombinePlan:
    """Check a combination from headers alone; arguments as for `combine`.

    Raises:
        MismatchError: the adapters do not belong together; all faults at once.
        OptionError: an argument is invalid, or the budget is too small.
    """
    mixture, data_type = Mixture(method, density), float_dtype(dtype)
    choice = RankChoice.given(rank=rank, energy=energy, error=error, budget=budget)
    factors = checked_weights(weights, len(adapters))
    loaded = scaled_where_found([open_adapter(adapter) for adapter in adapters], scale or {})
    used = [(adapter, weight) for adapter, weight in zip(loaded, factors, strict=True) if weight]
    if not used:
        msg = "nothing to combine: " + ("every weight is zero" if adapters else "no adapter was given")
        raise OptionError(msg)
    repeated_layers(loaded)  # refuses adapters that do not repeat the same ones
    opened = deepened(open_model(base), loaded) if base is not None else None
    if opened is not None and any(expert_of(name) for adapter in loaded for name in adapter):
        opened = with_fused_experts(opened)
    chosen, chosen_weights = zip(*used, strict=True)
    zero = [Skipped(f"adapter {i}", "zero weight") for i, weight in enumerate(factors, 1) if not weight]
    common = to_common_names(chosen, base)
    if opened is not None:
        common = [without_zero_biases(adapter, opened) for adapter in common]
    files = tuple(file for adapter in loaded for file in adapter.files)
    plan = CombinePlan(tuple(common), chosen_weights, mixture, choice, opened, data_type, tuple(zero), files)
    plan.check()
    return plan


def _tokens(name: str, adapter: AdapterOutline) -> list[int] | str:
    """The tokens of saved rows, or why there are none."""
    try:
        return tokens_of(name, adapter.config, adapter.modules_to_save[name])
    except ValueError as fault:
        return str(fault)


def _kind(layer: LayerOutline) -> str:
    return layer.kind


def _shape(layer: LayerOutline) -> tuple[int, ...]:
    return (*layer.lora_B.shape[:1], *layer.lora_A.shape[1:])
