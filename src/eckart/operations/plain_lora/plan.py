"""Plans a conversion to plain LoRA from headers: which updates are computed anew, and what stays as it is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.adapter.adapter import Adapter
from eckart.adapter.outline import AdapterOutline, TensorOutline
from eckart.checkpoint import Checkpoint, DType, MatrixView
from eckart.checkpoint.base_names import NamesOfBase
from eckart.checkpoint.dtypes import FLOAT32
from eckart.checkpoint.module_tree import tree_naming
from eckart.checkpoint.naming import is_embedding
from eckart.errors import MismatchError, OptionError
from eckart.formats.lora_file import products_in
from eckart.formats.peft_tokens import FIELD, embedding_of, is_token_rows, tokens_of
from eckart.formats.sources import Source, open_adapter, open_model
from eckart.operations.conversion import plan_conversion
from eckart.operations.costs import Costs
from eckart.operations.output_dtype import float_dtype
from eckart.operations.placement import Term, find_places
from eckart.operations.preview import Match, Preview
from eckart.operations.rank_choice import DEFAULT_RANK, HEADER_BYTES, RankChoice
from eckart.operations.resizing.plan import ResizePlan, plan_resize
from eckart.operations.select_layers import shapes_of
from eckart.result import Skipped

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Replacement:
    """A layer that is computed from the base: its matrix, and the terms of the adapter that change it."""

    view: MatrixView
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class LoraPlan:
    """A conversion to plain LoRA, checked from headers.

    Attributes:
        adapter: the adapter, in PEFT's format.
        base: its model.
        choice: how the ranks of the replaced layers are chosen.
        replaced: the layers to compute, by their names.
        saved: tensors that stay saved as they are.
        skipped: why they do.
        dtype: data type of the factors to compute.
    """

    adapter: Adapter
    base: Checkpoint
    choice: RankChoice
    replaced: Mapping[str, Replacement]
    saved: tuple[str, ...]
    skipped: Sequence[Skipped]
    dtype: DType

    made_by = "lora"

    @property
    def kept(self) -> list[str]:
        """Layers that stay as they are."""
        return [name for name in self.adapter if name not in self.replaced]

    @property
    def frame(self) -> Adapter:
        """The adapter without its layers."""
        saved = {name: self.adapter.modules_to_save[name] for name in self.saved}
        rewritten = set() if saved else {FIELD, "modules_to_save"}
        config = {field: value for field, value in self.adapter.config.items() if field not in rewritten}
        base_model = self.adapter.base_model or (self.base.source if self.base.files else None)
        return replace(self.adapter, layers={}, modules_to_save=saved, config=config, base_model=base_model)

    @property
    def inputs(self) -> list[Path]:
        """Files that are read."""
        return [*self.adapter.files, *self.base.files]

    def rank_of(self, name: str) -> int | None:
        """The rank of a replaced layer; None if its spectrum decides it."""
        replacement = self.replaced[name]
        if self.choice.rank is None:
            return None
        outline = self.adapter.outline()
        rows = [outline.modules_to_save[term.key].shape[0] for term in replacement.terms if term.part == "rows"]
        # New values of a few rows are an update of that rank.
        limit = sum(rows) if len(rows) == len(replacement.terms) else self.choice.rank
        return min(self.choice.rank, limit, *replacement.view.stored_shape)

    def written_bytes(self) -> int:
        """Size of the result, at most."""
        outline = self.adapter.outline()
        ranks = {name: self.rank_of(name) or min(it.view.stored_shape) for name, it in self.replaced.items()}
        costs = {name: self.dtype.itemsize * sum(it.view.stored_shape) for name, it in self.replaced.items()}
        fixed = sum(outline[name].nbytes for name in self.kept)
        fixed += sum(outline.modules_to_save[name].nbytes for name in self.saved)
        return Costs(costs, fixed + HEADER_BYTES * (len(self.kept) + len(costs))).total(ranks)

    def preview(self) -> Preview:
        """What would be computed, read and written."""
        outline = self.adapter.outline()
        shapes = shapes_of(outline, self.kept)
        matches = [
            Match(name, it.view.shape, (outline[name].rank if name in outline else 0,), self.rank_of(name))
            for name, it in self.replaced.items()
        ]
        matches += [Match(name, shape, (outline[name].rank,), outline[name].rank) for name, shape in shapes.items()]
        read = sum(self.base.tensors[it.view.tensor].nbytes for it in self.replaced.values())
        return Preview("lora", matches, self.skipped, outline.nbytes + read, self.written_bytes())


def plan_to_lora(
    adapter: Adapter | str | Path,
    base: Source,
    *,
    rank: int | None = None,
    error: float | None = None,
    dtype: "str | torch.dtype" = "float32",
) -> LoraPlan:
    """Check a conversion to plain LoRA from headers alone; arguments as for `to_lora`.

    Raises:
        MismatchError: the adapter does not fit the base.
        OptionError: an argument is invalid.
    """
    choice = RankChoice.given(rank=rank, error=error) or RankChoice(DEFAULT_RANK)
    data_type = float_dtype(dtype) or FLOAT32
    checkpoint = open_model(base)
    opened = _in_peft(open_adapter(adapter), base)
    outline = opened.outline()
    staying = list(_staying(outline, checkpoint))
    moving = {n: t for n, t in outline.modules_to_save.items() if n not in {item.name for item in staying}}
    owners = {name.removesuffix(".weight") for name in moving}
    layers = {n: layer for n, layer in outline.items() if layer.magnitude is not None or n in owners}
    part = replace(outline, layers=layers, modules_to_save=moving)
    places = find_places(checkpoint, [part])
    naming, replaced = tree_naming(checkpoint), {}
    for tensor, matrices in places.changes.items():
        for view_name, terms in matrices.items():
            if view := places.views.get(view_name):
                name = _layer_name(tensor, view, terms, naming(tensor))
                replaced[name] = Replacement(_as_module(view, name), tuple(terms))
    saved = tuple(item.name for item in staying)
    return LoraPlan(opened, checkpoint, choice, replaced, saved, staying, data_type)


def plan_products(
    adapter: Adapter | str | Path,
    *,
    rank: int | None = None,
    error: float | None = None,
    dtype: "str | torch.dtype" = "float32",
) -> ResizePlan:
    """Check from headers a conversion of LoHa, LoKr and full differences in a file; arguments as for `to_lora`.

    Raises:
        MismatchError: every layer is plain LoRA already.
        OptionError: an argument is invalid, or other layers are computed from the model.
    """
    opened = open_adapter(adapter)
    outline = opened.outline()
    of_model = [name for name, layer in outline.items() if layer.magnitude is not None] + [*outline.modules_to_save]
    if of_model:
        msg = f"`to=lora` computes {of_model[0]} from the model: give it as `base`"
        raise OptionError(msg)
    names = products_in(opened)
    if not names:
        msg = "every layer is plain LoRA already; eckart resize changes its rank"
        raise MismatchError(msg)
    choice = RankChoice.given(rank=rank, error=error) or RankChoice(DEFAULT_RANK)
    return plan_resize(opened, rank=choice, target=names, dtype=dtype)


def _in_peft(adapter: Adapter, base: Source) -> Adapter:
    """The adapter in PEFT's format.

    Raises:
        MismatchError: it is of several components of a pipeline, or its names cannot be resolved.
    """
    if adapter.format == "peft":
        return adapter
    parts = plan_conversion(adapter, "peft", base=base if isinstance(base, str | Path) else None).adapters
    if len(parts) > 1:
        msg = f"the adapter has several components ({', '.join(parts)}): convert it to peft, and then each of them"
        raise MismatchError(msg)
    return next(iter(parts.values()))


def _staying(outline: AdapterOutline, base: Checkpoint) -> Iterator[Skipped]:
    """Saved tensors that no low-rank update of the base can express, with the reason."""
    names = NamesOfBase([*base.tensors, *base.tied], base)
    for name, tensor in outline.modules_to_save.items():
        if reason := _reason(name, tensor, names, base, outline.config):
            yield Skipped(name, f"stays a saved tensor: {reason}")


def _reason(
    name: str, tensor: TensorOutline, names: NamesOfBase, base: Checkpoint, config: Mapping[str, Any]
) -> str | None:
    if tensor.ndim < 2:
        return "a vector has no low-rank update"
    found = names.find(embedding_of(name))
    if found is None:
        return "the base has no such tensor"
    shape = base.tensors[base.tied.get(found, found)].shape
    if is_token_rows(name):
        beyond = [token for token in tokens_of(name, config, tensor) if token >= shape[0]]
        return "the base has no such tokens" if beyond else None
    return None if shape == tensor.shape else f"its shape is {tensor.shape}, the base's {shape}"


def _layer_name(tensor: str, view: MatrixView, terms: Sequence[Term], in_tree: str) -> str:
    """The name of the layer for a change: the adapter's own, or that of a module that shares the weight."""
    if view.kind == "expert" or any(term.part == "update" for term in terms):
        return next(term.key for term in terms if term.part == "update")
    key = terms[0].key
    # Token rows are replaced in every module that shares the embedding.
    name = embedding_of(key) if tensor == view.tensor or not is_token_rows(key) else in_tree
    return name.removesuffix(".weight")


def _as_module(view: MatrixView, name: str) -> MatrixView:
    """The matrix as the weight of that module: of an output layer it is linear, also if it is tied to an embedding."""
    shared = view.kind == "embedding" and not is_embedding(name)
    return replace(view, name=name, **({"kind": "linear", "swaps_factors": False} if shared else {}))
