"""What a merge will write, known from headers: every tensor of the output, where it comes from, what changes it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eckart.adapter.adapter import Adapter
from eckart.checkpoint import Checkpoint, DType, MatrixView, open_checkpoint
from eckart.checkpoint.companions import has_companions, missing_companions
from eckart.checkpoint.dtypes import FLOAT64
from eckart.checkpoint.layouts import as_view
from eckart.checkpoint.nf4 import Nf4Checkpoint
from eckart.checkpoint.nf4_scheme import stored_name
from eckart.checkpoint.source import read_config
from eckart.engine import Execution
from eckart.engine.fingerprint import fingerprint
from eckart.errors import OptionError
from eckart.formats import load_adapter, rename_for_base, unknown_fields
from eckart.formats.expert_modules import with_expert_modules
from eckart.operations.model_writer.rewrite import Rewriting, Rewritten, in_cache, shards_of
from eckart.operations.placement import Term, find_places, stored_factors
from eckart.operations.preview import Match, Preview
from eckart.operations.weight_update import Update, update_of
from eckart.operations.weights import checked_weights
from eckart.result import Skipped

_TIE = "tie_word_embeddings"
Source = str | Path | Mapping[str, Tensor] | nn.Module
Adapters = Sequence[Adapter | str | Path] | Adapter | str | Path


@dataclass(frozen=True)
class MergePlan:
    """A merge that is known to be possible: every key has its place.

    Attributes:
        base: to merge into.
        adapters: to merge.
        weights: of the adapters.
        tensors: every tensor of the output.
        skipped: what will not be in it, and why.
        matches: modules that are worked on.
        dtype: of all floating tensors; None keeps the base's.
        made_by: the command.
    """

    base: Checkpoint
    adapters: tuple[Adapter, ...]
    weights: tuple[float, ...]
    tensors: list[Rewritten]
    skipped: list[Skipped]
    matches: list[Match]
    dtype: DType | None = None
    made_by: str = "merge"

    @property
    def untied(self) -> list[str]:
        """Tensors that the base shares with others and the output has for itself."""
        return [tensor.name for tensor in self.tensors if tensor.name in self.base.tied]

    @property
    def count(self) -> int:
        """Tensors of the output, each quantized weight counted once."""
        return len(self.base.tensors) + len(self.untied)

    @property
    def changed(self) -> list[Rewritten]:
        """Tensors that an adapter changes."""
        return [tensor for tensor in self.tensors if tensor.terms]

    def preview(self) -> Preview:
        """What `merge` would do."""
        read = sum(info.nbytes for info in self.base.tensors.values())
        read += sum(adapter.nbytes for adapter in self.adapters)
        return Preview(self.made_by, self.matches, self.skipped, read, self.nbytes)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the output's tensors."""
        return sum(spec.nbytes for specs in shards_of(self.tensors).values() for spec in specs)

    def fingerprint(self) -> str:
        """A digest of everything that the output depends on."""
        facts = {
            "made_by": self.made_by,
            "base": self.base.fingerprint(),
            "adapters": [adapter.fingerprint() for adapter in self.adapters],
            "weights": self.weights,
            "dtype": str(self.dtype),
            "tensors": [[tensor.name, str(tensor.dtype), sorted(tensor.terms)] for tensor in self.tensors],
        }
        return fingerprint(facts)

    def write(self, output: Path, execution: Execution, *, force: bool) -> dict[str, dict[str, Any]]:
        """Write the output, and return what was noted of each tensor (errors as `merge`)."""
        rewriting = Rewriting(self.base, self.tensors, self.update, self._config())
        stage = {"merge": "Merging", "unmerge": "Unmerging"}[self.made_by]
        return rewriting.write(output, self.fingerprint(), execution, stage=stage, force=force)

    def update(self, tensor: Rewritten, view: MatrixView, slabs: Callable[[], Iterator[Tensor]]) -> Update:
        """What changes one matrix, whose rows `slabs` reads."""
        dtype = torch.float64 if tensor.info.dtype == FLOAT64 else torch.float32
        terms = tensor.terms[view.name]
        upcast = lambda: (part.to(dtype) for rows in slabs() for part in in_cache(rows))  # noqa: E731
        return update_of(terms, self.adapters, self.weights, dtype=dtype, view=view, slabs=upcast)

    def _config(self) -> dict[str, Any]:
        """The config.json to write; {} where the base's is copied as it is, or there is none."""
        complete = has_companions(self.base)
        original = read_config(self.base.folder) if complete else self.base.config
        config = dict(original)
        if self.dtype is not None:
            config.pop("quantization_config", None)
        floating = {tensor.dtype for tensor in self.tensors if tensor.dtype.is_floating_point}
        if config and len(floating) == 1 and (self.dtype is not None or not complete):
            name = "torch_dtype" if "torch_dtype" in config else "dtype"
            config[name] = floating.pop().name
        if config and self.untied:
            config[_TIE] = False
        inner = config.get("text_config")
        if isinstance(inner, dict):
            config["text_config"] = inner | {
                key: config[key] for key in inner if key in ("dtype", _TIE) and key in config
            }
        return {} if complete and config == original else config


def plan_merge(
    base: Source,
    adapters: Adapters,
    *,
    weights: Sequence[float] | None = None,
    dtype: DType | torch.dtype | str | None = None,
) -> MergePlan:
    """Match adapters with a base, from headers alone (of tied layers that both have an update, its factors too).

    Arguments and errors as of `merge`.
    """
    checkpoint, to = open_checkpoint(base), None if dtype is None else DType.of(dtype)
    given = [adapters] if isinstance(adapters, (Adapter, str, Path)) else adapters
    if not given:
        msg = "no adapter was given; expected at least one"
        raise OptionError(msg)
    found = [item if isinstance(item, Adapter) else load_adapter(item) for item in given]
    loaded = tuple(rename_for_base(checkpoint, adapter) for adapter in found)
    loaded = tuple(with_expert_modules(adapter, checkpoint.tensors) for adapter in loaded)
    factors = checked_weights(weights, len(loaded))
    outlines = [adapter.outline() for adapter in loaded]
    places = find_places(checkpoint, outlines)
    skipped = missing_companions(checkpoint)
    skipped += [item for adapter in loaded for item in unknown_fields(adapter)]
    skipped += [Skipped(f"adapter {n}", "its weight is zero") for n, w in enumerate(factors, start=1) if w == 0]
    changes = {
        tensor: {name: kept for name, terms in matrices.items() if (kept := [t for t in terms if factors[t.adapter]])}
        for tensor, matrices in places.changes.items()
    }
    changes = {tensor: matrices for tensor, matrices in changes.items() if matrices}
    matrices: dict[str, list[MatrixView]] = {}
    for view in {view.name: view for view in places.views.values()}.values():
        matrices.setdefault(view.tensor, []).append(view)
    tied = _still_tied(checkpoint, changes, loaded, places.views)
    tensors = []
    for stored in checkpoint.tensors:
        for name in (stored, *(absent for absent, owner in checkpoint.tied.items() if owner == stored)):
            if name == stored or name not in tied:
                tensors += _outputs(checkpoint, name, stored, changes.get(name, {}), matrices.get(stored), dtype=to)
    matches = _matches(changes, outlines, places.views, checkpoint)
    return MergePlan(checkpoint, loaded, factors, tensors, skipped, matches, to)


def _outputs(
    base: Checkpoint,
    name: str,
    stored: str,
    terms: Mapping[str, list[Term]],
    views: Sequence[MatrixView] | None,
    *,
    dtype: DType | None,
) -> list[Rewritten]:
    """The tensors to write for one of the base, under its own name or that of a tied one."""
    info = base.tensors[stored]
    scheme = base.schemes.get(stored) if isinstance(base, Nf4Checkpoint) and dtype is None else None
    if isinstance(base, Nf4Checkpoint) and scheme is not None and not terms:
        parts = [base.stored.tensors[stored_name(base.stored, spec.name)] for spec in scheme.specs()]
        return [
            Rewritten(spec.name, base.stored, held.name, held.dtype, (as_view(held.name, held.shape),), {})
            for spec, held in zip(replace(scheme, name=name).specs(), parts, strict=True)
        ]
    scheme = replace(scheme, name=name) if scheme else None
    to = dtype if dtype and info.dtype.is_floating_point else info.dtype
    seen = tuple(views) if views and terms else (as_view(stored, info.shape),)
    return [Rewritten(name, base, stored, to, seen, terms, scheme)]


def _still_tied(
    base: Checkpoint, changes: Mapping[str, Any], adapters: Sequence[Adapter], views: Mapping[str, MatrixView]
) -> set[str]:
    """Names that may go on sharing their tensor: nothing changes either, or the same does."""
    return {
        absent
        for absent, stored in base.tied.items()
        if (absent not in changes and stored not in changes)
        or (absent in changes and stored in changes and _equal(changes[absent], changes[stored], adapters, views))
    }


def _equal(
    first: Mapping[str, list[Term]],
    second: Mapping[str, list[Term]],
    adapters: Sequence[Adapter],
    views: Mapping[str, MatrixView],
) -> bool:
    """Whether two changes of one stored matrix are the same, by their factors."""

    def parts(term: Term, view: MatrixView) -> list[Tensor]:
        if term.part == "whole":
            return [adapters[term.adapter].modules_to_save[term.key]]
        layer = adapters[term.adapter][term.key]
        if layer.magnitude is not None:
            # An output is a row of an output layer and a column of an embedding: their norms differ.
            return [torch.tensor(float("nan"))]
        return [*stored_factors(layer, view), torch.tensor(layer.scaling)]

    if first.keys() != second.keys():
        return False
    for name, terms in first.items():
        others = second[name]
        if [term.adapter for term in terms] != [term.adapter for term in others]:
            return False
        for term, other in zip(terms, others, strict=True):
            mine, theirs = parts(term, views[name]), parts(other, views[name])
            if len(mine) != len(theirs) or not all(map(torch.equal, mine, theirs)):
                return False
    return True


def _matches(
    changes: Mapping[str, Mapping[str, list[Term]]],
    outlines: Sequence[Adapter],
    views: Mapping[str, MatrixView],
    base: Checkpoint,
) -> list[Match]:
    """Modules that are worked on, each with the ranks of its updates; a tensor that is set whole has rank 0."""
    found = []
    for tensor, matrices in changes.items():
        for name, terms in matrices.items():
            updates = {term.adapter: outlines[term.adapter][term.key].rank for term in terms if term.part == "update"}
            ranks = tuple(updates.get(number, 0) for number in range(len(outlines)))
            view = views.get(name) or as_view(name, base.tensors[name].shape)
            label = tensor.removesuffix(".weight") if tensor in base.tied else name
            found.append(Match(label, view.shape, ranks))
    return found
