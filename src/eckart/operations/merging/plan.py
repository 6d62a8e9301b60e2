"""Plans a merge from headers: every tensor of the output, where it is read from, and what changes it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.adapter.adapter import Adapter
from eckart.adapter.outline import AdapterOutline
from eckart.checkpoint.companions import has_companions, missing_companions
from eckart.checkpoint.derived import DerivedCheckpoint
from eckart.checkpoint.encodings.nf4 import Nf4Checkpoint
from eckart.checkpoint.encodings.nf4_scheme import stored_name
from eckart.checkpoint.encodings.undecoded import undecoded
from eckart.checkpoint.layouts import as_view
from eckart.checkpoint.model_config import read_config
from eckart.checkpoint.pipeline import PipelineCheckpoint
from eckart.checkpoint.tying import stored_twice, untied_config
from eckart.errors import MismatchError, OptionError, OutputError
from eckart.formats import unknown_fields
from eckart.formats.sources import Source, open_adapter, open_model
from eckart.operations.fitting import deepened, fitted
from eckart.operations.layer_scales import scaled_where_found
from eckart.operations.merging.encodings import (
    CONFIG_FILES,
    kept_codes,
    markers,
    scheme_of,
    stored_form,
    unchanged_parts,
    without_quantization,
)
from eckart.operations.merging.extended import extended
from eckart.operations.model_writer.plan import ModelPlan, OutputTensor, dtype_entry, untied
from eckart.operations.output_dtype import float_dtype
from eckart.operations.placement import Places, Term, find_places
from eckart.operations.preview import Match
from eckart.operations.stored_factors import stored_factors
from eckart.operations.weights import checked_weights
from eckart.result import Skipped

if TYPE_CHECKING:
    import torch

    from eckart.checkpoint import Checkpoint, DType, MatrixView

Adapters = Sequence[Adapter | str | Path] | Adapter | str | Path
Changes = Mapping[str, Mapping[str, list[Term]]]


def plan_merge(
    base: Source,
    adapters: Adapters,
    *,
    weights: Sequence[float] | None = None,
    scale: Mapping[str, float] | None = None,
    dtype: DType | torch.dtype | str | None = None,
) -> ModelPlan:
    """Match adapters with a base from headers; factors are read only if both of two tied layers have an update.

    Arguments and errors as of `merge`.
    """
    instead = "give the model first, then the adapters; eckart combine joins adapters"
    checkpoint = open_model(base, instead=instead)
    if isinstance(checkpoint, PipelineCheckpoint):
        _refuse_codes(checkpoint)
    opened = scaled_where_found(open_adapters(adapters), scale or {})
    stored, checkpoint = checkpoint, deepened(checkpoint, opened)
    loaded = tuple(fitted(adapter, checkpoint) for adapter in opened)
    factors = checked_weights(weights, len(loaded))
    checkpoint, tokenizer = extended(checkpoint, loaded, factors)
    if isinstance(stored, Nf4Checkpoint) and dtype is None and checkpoint is not stored:
        added = ", ".join([*(checkpoint.tensors.keys() - stored.tensors.keys())][:2]) or "a vocabulary of another size"
        msg = (
            f"{stored.source} is stored in NF4, and the adapter adds tensors to it ({added}); merge into plain weights "
            "(`dtype=bfloat16`), which can be quantized again"
        )
        raise MismatchError(msg)
    outlines = [adapter.outline() for adapter in loaded]
    places = find_places(checkpoint, outlines)
    changes = _without_zero_weights(places.changes, factors)
    target = float_dtype(dtype)
    kept = kept_codes(checkpoint, changes, target)
    tensors = _tensors(checkpoint, changes, places, loaded, kept, dtype=target)
    keeps_codes = bool(kept) or any(tensor.scheme for tensor in tensors)
    tensors += markers(checkpoint) if keeps_codes else []
    skipped = missing_companions(checkpoint)
    skipped += [item for adapter in loaded for item in unknown_fields(adapter)]
    skipped += [Skipped(f"adapter {n}", "its weight is zero") for n, w in enumerate(factors, start=1) if w == 0]
    matches = _matches(changes, outlines, places.views, checkpoint)
    config = _config(checkpoint, tensors, changes, kept, dtype=target)
    return ModelPlan(
        "merge",
        checkpoint,
        tensors,
        matches,
        skipped,
        config,
        loaded,
        factors,
        tokenizer=tokenizer,
        omitted=() if kept or target is None else CONFIG_FILES,
        keeps_codes=keeps_codes,
    )


def _refuse_codes(base: PipelineCheckpoint) -> None:
    """Refuse a pipeline with quantized models, each of which has a config of its own."""
    for name, part in base.parts.items():
        kinds = sorted({info.quantization for info in part.tensors.values() if info.quantization})
        if kinds or undecoded(part):
            msg = f"{base.source}: {name} is quantized ({', '.join(kinds) or 'codes'}); merge into its folder alone"
            raise OptionError(msg)


def written_to(plan: ModelPlan, output: Path) -> ModelPlan:
    """The plan for an output: a name that ends in .safetensors is that of one file.

    Raises:
        OutputError: the base is more than one file of weights.
    """
    if output.suffix != ".safetensors":
        return plan
    if isinstance(plan.base, PipelineCheckpoint) or has_companions(plan.base):
        msg = f"{output}: {plan.base.source} is a folder with a config, and the result is one too; name a folder"
        raise OutputError(msg)
    beside = {item.name for item in missing_companions(plan.base)}  # which belong to folders
    return replace(plan, as_file=output.name, skipped=[item for item in plan.skipped if item.name not in beside])


def open_adapters(adapters: Adapters) -> list[Adapter]:
    """One adapter or several, opened.

    Raises:
        SourceError, FileFormatError: one cannot be read.
        OptionError: none is given, or one is a model.
    """
    given = [adapters] if isinstance(adapters, (Adapter, str, Path)) else adapters
    if not given:
        msg = "no adapter was given; expected at least one"
        raise OptionError(msg)
    return [open_adapter(adapter) for adapter in given]


def _without_zero_weights(changes: Changes, weights: Sequence[float]) -> Changes:
    """The changes by adapters whose weight is not zero."""
    result: dict[str, dict[str, list[Term]]] = {}
    for tensor, matrices in changes.items():
        for name, terms in matrices.items():
            if effective := [term for term in terms if weights[term.adapter]]:
                result.setdefault(tensor, {})[name] = effective
    return result


def _tensors(
    base: Checkpoint,
    changes: Changes,
    places: Places,
    adapters: Sequence[Adapter],
    kept: Collection[str],
    *,
    dtype: DType | None,
) -> list[OutputTensor]:
    """Every tensor of the output; if tied ones no longer share one weight, all get their own."""
    views: dict[str, dict[str, MatrixView]] = {}
    for view in places.views.values():
        views.setdefault(view.tensor, {})[view.name] = view
    untie = any(
        not _same_change(changes.get(name), changes.get(stored), adapters, places) for name, stored in base.tied.items()
    )
    tensors = []
    for stored in base.tensors:
        # A config that unties one name unties all, and whichever the files lack would be random.
        tied = [name for name, other in base.tied.items() if other == stored and untie]
        for name in (stored, *tied):
            seen = list(views.get(stored, {}).values())
            if stored in kept:
                tensors += stored_form(base, stored, name)
            else:
                tensors += _outputs(base, name, stored, changes.get(name, {}), seen, dtype=dtype)
    return tensors


def _outputs(
    base: Checkpoint,
    name: str,
    stored: str,
    terms: Mapping[str, list[Term]],
    views: Sequence[MatrixView],
    *,
    dtype: DType | None,
) -> list[OutputTensor]:
    """The tensors to write for one of the base, under its own name or that of a tied one."""
    info = base.tensors[stored]
    scheme = base.schemes.get(stored) if isinstance(base, Nf4Checkpoint) and dtype is None else None
    if isinstance(base, Nf4Checkpoint) and scheme is not None and not terms:
        sources = [base.stored.tensors[stored_name(base.stored, spec.name)] for spec in scheme.specs()]
        return [
            OutputTensor(spec.name, base.stored, part.name, part.dtype, (as_view(part.name, part.shape),))
            for spec, part in zip(replace(scheme, name=name).specs(), sources, strict=True)
        ]
    scheme = replace(scheme, name=name) if scheme else scheme_of(base, stored, name) if dtype is None else None
    written = dtype if dtype and info.dtype.is_floating_point else info.dtype
    seen = tuple(views) if views and terms else (as_view(stored, info.shape),)
    output = OutputTensor(name, base, stored, written, seen, terms, scheme)
    return [output, *(unchanged_parts(base, stored, scheme) if scheme else ())]


def _same_change(
    first: Mapping[str, list[Term]] | None,
    second: Mapping[str, list[Term]] | None,
    adapters: Sequence[Adapter],
    places: Places,
) -> bool:
    """Whether two changes of one stored weight are the same, or there are none, so that it can stay shared."""
    if not first or not second:
        return not first and not second
    return first.keys() == second.keys() and all(
        len(terms) == len(second[name])
        and all(_same_term(*pair, adapters, places.views.get(name)) for pair in zip(terms, second[name], strict=True))
        for name, terms in first.items()
    )


def _same_term(term: Term, other: Term, adapters: Sequence[Adapter], view: MatrixView | None) -> bool:
    """Whether two terms are equal, by their tensors."""
    import torch

    if (term.adapter, term.part) != (other.adapter, other.part):
        return False
    adapter = adapters[term.adapter]
    if term.part == "added":
        return torch.equal(adapter.added[term.key], adapter.added[other.key])
    if term.part in ("whole", "rows") or view is None:
        return torch.equal(adapter.modules_to_save[term.key], adapter.modules_to_save[other.key])
    layer, second = adapter[term.key], adapter[other.key]
    if layer.magnitude is not None or second.magnitude is not None:
        return False  # an output is a row of an output layer and a column of an embedding: their norms differ
    factors = zip(stored_factors(layer, view), stored_factors(second, view), strict=True)
    return layer.scaling == second.scaling and all(torch.equal(*pair) for pair in factors)


def _matches(
    changes: Changes, outlines: Sequence[AdapterOutline], views: Mapping[str, MatrixView], base: Checkpoint
) -> list[Match]:
    """Modules that are changed, each with the ranks of its updates; a tensor that is replaced has rank 0."""
    matches = []
    for tensor, matrices in changes.items():
        for name, terms in matrices.items():
            updates = {term.adapter: outlines[term.adapter][term.key].rank for term in terms if term.part == "update"}
            ranks = tuple(updates.get(number, 0) for number in range(len(outlines)))
            view = views.get(name) or as_view(name, base.tensors[base.tied.get(name, name)].shape)
            label = tensor.removesuffix(".weight") if tensor in base.tied else name
            stored = (base.tensors[view.tensor].stored,) if view.tensor in base.tensors else ()
            matches.append(Match(label, view.shape, ranks, stored=stored))
    return matches


def _config(
    base: Checkpoint, tensors: Iterable[OutputTensor], changes: Changes, kept: Collection[str], *, dtype: DType | None
) -> dict[str, Any]:
    """The config.json to write; {} if the base's is copied as it is, or there is none."""
    complete = has_companions(base)
    original = read_config(base.folder) if complete else base.config
    config = dict(base.config if isinstance(base, DerivedCheckpoint) else original)
    if dtype is not None and not kept:
        config = without_quantization(config)
    if config and (dtype is not None or not complete):
        config |= dtype_entry(config, (tensor.dtype for tensor in tensors))
    changed = [[name for name in group if name in changes] for group in stored_twice(base.tensors, config)]
    if config and (untied(base, tensors) or any(changed)):
        config = untied_config(config)
    inner = config.get("text_config")
    if isinstance(inner, dict) and "dtype" in inner and "dtype" in config:
        config["text_config"] = inner | {"dtype": config["dtype"]}
    return {} if complete and config == original else config
