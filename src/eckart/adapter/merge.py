"""Adapters baked into a base: base + Σ wᵢ·Δᵢ, streamed tensor by tensor, rounded once to the base's dtype."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import eckart
from eckart.adapter.adapter import Adapter, load_adapter
from eckart.adapter.places import Term, find_places, stored_factors
from eckart.adapter.preview import Match, Preview
from eckart.adapter.rewrite import Rewriting, Rewritten, as_view, has_companions, shards_of
from eckart.adapter.update import Update, update_of
from eckart.checkpoint import Checkpoint, LeftOut, MatrixView, open_checkpoint
from eckart.checkpoint.source import read_config
from eckart.engine import Run
from eckart.errors import OptionError

HERE = Run()
Source = str | Path | Mapping[str, Tensor] | nn.Module
Adapters = Sequence[Adapter | str | Path]


@dataclass(frozen=True)
class MergeResult:
    """A checkpoint with adapters baked in.

    Attributes:
        output: the folder.
        tensors: in it.
        changed: of these, by an adapter.
        nbytes: of all tensors.
        untied: whether an output layer that shared the embedding's weight now has its own.
        left_out: what is not in the output, and why.
        seconds: wall time.
        requantisation_error: ‖requantised − merged‖_F / ‖merged‖_F of a quantised base; None of any other.
        update_error: the same difference as a share of ‖merged − base‖_F.
    """

    output: Path
    tensors: int
    changed: int
    nbytes: int
    untied: bool
    left_out: list[LeftOut]
    seconds: float
    requantisation_error: float | None = None
    update_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The `eckart-merge/1` object."""
        return {
            "format": "eckart-merge/1",
            "tensors": self.tensors,
            "changed": self.changed,
            "bytes": self.nbytes,
            "untied": self.untied,
            "requantisation_error": self.requantisation_error,
            "update_error": self.update_error,
            "left_out": [{"name": item.name, "reason": item.reason} for item in self.left_out],
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class MergePlan:
    """A merge that is known to be possible: every key has its place.

    Attributes:
        base: to merge into.
        adapters: to merge.
        weights: of the adapters.
        tensors: every tensor of the output.
        left_out: what will not be in it, and why.
        matches: modules that are worked on.
        made_by: the command.
    """

    base: Checkpoint
    adapters: tuple[Adapter, ...]
    weights: tuple[float, ...]
    tensors: list[Rewritten]
    left_out: list[LeftOut]
    matches: list[Match]
    made_by: str = "merge"

    @property
    def untied(self) -> bool:
        """Whether a tensor is written that the base shares with another."""
        return len(self.tensors) > len(self.base.tensors)

    @property
    def changed(self) -> list[Rewritten]:
        """Tensors that an adapter changes."""
        return [tensor for tensor in self.tensors if tensor.terms]

    def preview(self) -> Preview:
        """What `merge` would do."""
        read = sum(info.nbytes for info in self.base.tensors.values())
        read += sum(adapter.nbytes for adapter in self.adapters)
        return Preview(self.made_by, self.matches, self.left_out, read, self.nbytes)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the output's tensors."""
        return sum(spec.nbytes for specs in shards_of(self.base, self.tensors).values() for spec in specs)

    def fingerprint(self) -> str:
        """A digest of everything that the output depends on."""
        facts = {
            "version": eckart.__version__,
            "made_by": self.made_by,
            "base": self.base.fingerprint(),
            "adapters": [adapter.fingerprint() for adapter in self.adapters],
            "weights": self.weights,
            "tensors": [[tensor.name, str(tensor.dtype), sorted(tensor.terms)] for tensor in self.tensors],
        }
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def write(self, output: Path, run: Run, *, force: bool) -> None:
        """Write the output (errors as `merge`)."""
        rewriting = Rewriting(self.base, self.tensors, self._update, self._config())
        stage = {"merge": "Merging", "unmerge": "Unmerging"}[self.made_by]
        rewriting.write(output, self.fingerprint(), run, stage=stage, force=force)

    def _update(self, tensor: Rewritten, view: MatrixView, slabs: Callable[[], Iterator[Tensor]]) -> Update:
        stored = self.base.tensors[tensor.source].dtype
        dtype = torch.float64 if stored == torch.float64 else torch.float32
        terms = tensor.terms[view.name]
        upcast = lambda: (rows.to(dtype) for rows in slabs())  # noqa: E731
        return update_of(terms, self.adapters, self.weights, dtype=dtype, view=view, slabs=upcast)

    def _config(self) -> dict[str, Any]:
        """The config.json to write; {} where the base's is copied as it is, or there is none."""
        config = dict(read_config(self.base.folder) if has_companions(self.base) else self.base.config)
        changes: dict[str, Any] = {}
        if self.untied:
            changes["tie_word_embeddings"] = False
        written = {tensor.dtype for tensor in self.tensors if tensor.dtype.is_floating_point}
        stored = {info.dtype for info in self.base.tensors.values() if info.dtype.is_floating_point}
        if config and len(written) == 1 and (written != stored or not has_companions(self.base)):
            name = "torch_dtype" if "torch_dtype" in config else "dtype"
            changes[name] = str(written.pop()).removeprefix("torch.")
        if isinstance(config.get("text_config"), dict):
            inner = config["text_config"]
            config["text_config"] = inner | {key: value for key, value in changes.items() if key in inner}
        return config | changes if changes or not has_companions(self.base) else {}


def plan_merge(
    base: Source,
    adapters: Adapters | Adapter | str | Path,
    *,
    weights: Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
) -> MergePlan:
    """Match adapters with a base, from headers alone (of tied layers that both have an update, its factors too).

    Arguments and errors as of `merge`.
    """
    checkpoint = open_checkpoint(base)
    given = [adapters] if isinstance(adapters, Adapter | str | Path) else adapters
    loaded = tuple(item if isinstance(item, Adapter) else load_adapter(item) for item in given)
    factors = checked_weights(weights, len(loaded))
    outlines = [adapter.outline() for adapter in loaded]
    places = find_places(checkpoint, outlines)
    left_out = _missing_companions(checkpoint)
    left_out += [LeftOut(f"adapter {n}", "its weight is zero") for n, w in enumerate(factors, start=1) if w == 0]
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
    for stored, info in checkpoint.tensors.items():
        for name in (stored, *(absent for absent, owner in checkpoint.tied.items() if owner == stored)):
            if name != stored and name in tied:
                continue
            terms = changes.get(name, {})
            views = matrices.get(stored) if terms else None
            to = dtype if dtype and info.dtype.is_floating_point else info.dtype
            tensors.append(Rewritten(name, stored, to, tuple(views or [as_view(stored, info.shape)]), terms))
    return MergePlan(
        checkpoint, loaded, factors, tensors, left_out, _matches(changes, outlines, places.views, checkpoint)
    )


def merge(
    base: Source,
    adapters: Adapters | Adapter | str | Path,
    output: str | Path,
    *,
    weights: Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    run: Run = HERE,
    force: bool = False,
) -> MergeResult:
    """Write `base` with adapters baked in: a model folder in Hugging Face layout.

    Rows are upcast to float32 (float64 where stored so), changed by the product of the factors, and rounded once.
    A DoRA layer is renormalised for each output; a tensor that an adapter saves whole replaces the base's, or is mixed
    with it by its weight. An adapter on only one of a tied embedding and output layer gives each its own weight.
    Tensors that no adapter changes are copied as they are.

    Args:
        base: SOURCE text, state dict or module.
        adapters: one or several, in memory or their SOURCEs.
        output: folder to write; what is finished is kept beside it until it is whole.
        weights: factor of each adapter, signed; all 1 by default, and an adapter of weight 0 changes nothing.
        dtype: of all floating tensors; None keeps the base's (float32 of quantised GGUF tensors).
        run: workers, memory, progress, resume.
        force: replace an existing output.

    Returns:
        `MergeResult`: where it is, how many tensors changed, and what is not in it.

    Raises:
        MismatchError: keys of the adapters without a place in the base, or of other shapes; all at once.
        OptionError: weights that are not one finite number for each adapter.
        OutputError: the output exists or cannot be written.
        NotFiniteError: a tensor that is changed, or an adapter, holds NaN or Inf, or the result overflows its dtype.
    """
    began = time.monotonic()
    run.check()
    plan = plan_merge(base, adapters, weights=weights, dtype=dtype)
    plan.write(Path(output), run, force=force)
    return MergeResult(
        Path(output), len(plan.tensors), len(plan.changed), plan.nbytes, plan.untied, plan.left_out,
        time.monotonic() - began,
    )  # fmt: skip


def checked_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """A weight for each adapter.

    Raises:
        OptionError: they are not one finite number for each.
    """
    if count == 0:
        msg = "no adapter was given; expected at least one"
        raise OptionError(msg)
    given = (1.0,) * count if weights is None else tuple(float(weight) for weight in weights)
    if len(given) != count or not all(isfinite(weight) for weight in given):
        msg = f"weights {', '.join(map(str, given))}: expected one finite number for each of {count} adapters"
        raise OptionError(msg)
    return given


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


def _missing_companions(base: Checkpoint) -> list[LeftOut]:
    """What a complete model folder would have and the base does not."""
    if has_companions(base):
        return []
    if any(info.file.suffix == ".gguf" for info in base.tensors.values()):
        file = next(iter(base.tensors.values())).file
        load = f"AutoTokenizer.from_pretrained({str(file.parent)!r}, gguf_file={file.name!r})"
        return [LeftOut("tokenizer", f"it lies in the GGUF file; {load}.save_pretrained(OUT) adds it")]
    missing = [] if base.config else [LeftOut("config.json", "the base has none")]
    return [*missing, LeftOut("tokenizer", "the base has none")]


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
