"""What an extraction will factor, save and write, checked from headers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from eckart.adapter.adapter import Adapter
from eckart.adapter.outline import AdapterFormat
from eckart.checkpoint import Checkpoint, DType, MatrixView, TensorInfo, as_patterns
from eckart.checkpoint.dtypes import FLOAT32
from eckart.checkpoint.fused_experts import with_fused_experts
from eckart.checkpoint.open import ModelSource
from eckart.checkpoint.pipeline import PipelineCheckpoint
from eckart.errors import OptionError
from eckart.formats.peft_config import task_type_of
from eckart.formats.peft_tokens import FIELD, rows_of
from eckart.formats.sources import open_model
from eckart.operations.costs import Costs, break_even_note
from eckart.operations.extraction.scope import Parts, Scope, split_tensors
from eckart.operations.extraction.vocabulary import with_vocabulary_of
from eckart.operations.output_dtype import float_dtype
from eckart.operations.preview import Match, Preview, stored_as
from eckart.operations.rank_choice import DEFAULT_RANK, HEADER_BYTES, Budget, RankChoice

if TYPE_CHECKING:
    import torch

    from eckart.operations.extraction.image_names import Written


@dataclass(frozen=True)
class ExtractPlan:
    """An extraction, checked from headers.

    Attributes:
        base: the base model.
        tuned: the fine-tuned model, with as many tokens as the base.
        stored: the fine-tuned model with all of its tokens, from which tensors are saved in full.
        choice: how the ranks are chosen.
        parts: every tensor, by how it is processed.
        dtype: data type of the factors.
        balanced: split √S to both factors; otherwise lora_B carries S and lora_A has orthonormal rows.
        written: the format and names of the result, if they are not those of the base.
    """

    base: Checkpoint
    tuned: Checkpoint
    stored: Checkpoint
    choice: RankChoice
    parts: Parts
    dtype: DType
    balanced: bool
    written: "Written | None" = None

    made_by = "extract"

    @property
    def frame(self) -> Adapter:
        """The adapter without its layers and tensors saved in full."""
        naming = self.parts.naming
        rows = {naming(name).removesuffix(".weight"): [*tokens] for name, tokens in self.parts.new_tokens.items()}
        task_type = task_type_of(map(str, self.base.config.get("architectures") or ()))
        form = self.written.to if self.written else self.format_of_base
        return Adapter({}, {}, self.base.source, task_type, {FIELD: rows} if rows else {}, form)

    @property
    def format_of_base(self) -> AdapterFormat:
        """The format whose names are those of the base."""
        return "diffusers" if isinstance(self.base, PipelineCheckpoint) else "peft"

    @property
    def inputs(self) -> list[Path]:
        """Files that are read."""
        return [*self.base.files, *self.tuned.files]

    def planned_ranks(self) -> dict[str, int] | None:
        """The rank of each matrix; None where the spectra decide it."""
        if self.choice.rank is None:
            return None
        return {view.name: min(self.choice.rank, *view.stored_shape) for view in self.parts.matrices}

    def costs(self, saved: Collection[str], biases: Collection[str], *, in_bytes: bool) -> Costs:
        """The cost of one rank of each matrix, and of these tensors.

        Args:
            saved: names of tensors saved in full.
            biases: names of bias tensors saved with factors.
            in_bytes: count bytes of the file rather than parameters.
        """
        width = self.dtype.itemsize if in_bytes else 1
        # An output layer tied to an embedding gets a copy of its factors.
        layers = {view.name: 1 + len(view.tied_modules) for view in self.parts.matrices}
        by_rank = {view.name: width * sum(view.stored_shape) * layers[view.name] for view in self.parts.matrices}
        fixed = HEADER_BYTES * (sum(layers.values()) + len(saved)) if in_bytes else 0
        sizes = [(self.stored.tensors[name], len(self.names_of(name))) for name in saved]
        sizes += [(replace(info, dtype=FLOAT32), 1) for info in (self.tuned.tensors[name] for name in biases)]
        sizes += [(info, 1) for info in self.new_rows().values()]
        for info, copies in sizes:
            fixed += copies * prod(info.shape) * (info.dtype.itemsize if in_bytes else 1)
        return Costs(by_rank, fixed)

    def names_of(self, saved: str) -> list[str]:
        """The names in the adapter of a tensor saved in full: PEFT replaces each module that shares a weight."""
        tied = [name for name, stored in self.stored.tied.items() if stored == saved and name.endswith(".weight")]
        return [self.parts.naming(name) for name in (saved, *tied)]

    def new_rows(self) -> dict[str, TensorInfo]:
        """The rows of new tokens, by their names in the adapter."""
        stored = {name: self.stored.tensors[name] for name in self.parts.new_tokens}
        return {
            rows_of(self.parts.naming(name)): replace(info, shape=(len(self.parts.new_tokens[name]), *info.shape[1:]))
            for name, info in stored.items()
        }

    def written_bytes(self) -> int:
        """Size of the adapter, at most."""
        ranks = self.planned_ranks() or {view.name: min(view.stored_shape) for view in self.parts.matrices}
        most = self.costs(self.parts.saved, self.parts.biases, in_bytes=True).total(ranks)
        budget = self.choice.budget
        return min(most, budget.amount) if budget and budget.in_bytes else most

    def preview(self) -> Preview:
        """What would be factored, read and written."""
        ranks = self.planned_ranks()
        matches = [
            Match(
                view.name,
                view.shape,
                (),
                ranks[view.name] if ranks else None,
                stored=stored_as(view, self.base, self.tuned),
            )
            for view in self.parts.matrices
        ]
        names = [*{view.tensor for view in self.parts.matrices}, *self.parts.saved, *self.parts.biases]
        read = sum(self.tuned.tensors[name].nbytes + _stored(self.base, name) for name in names)
        notes = [*self.vocabulary_notes(), *self.notes(ranks)]
        return Preview("extract", matches, self.parts.skipped, read, self.written_bytes(), notes)

    def notes(self, ranks: Mapping[str, int] | None) -> list[str]:
        """Notes about ranks, for the user to see before the work starts."""
        if ranks is None:
            return ["The spectra decide the ranks."]
        note = break_even_note((view.shape, ranks[view.name]) for view in self.parts.matrices)
        return [note] if note else []

    def vocabulary_notes(self) -> list[str]:
        """What becomes of tokens that only one of the models has."""
        sizes = {(self.base.tensors[n].shape[0], self.stored.tensors[n].shape[0]) for n in self.parts.new_tokens}
        return [
            f"{new - old} new tokens are saved as rows (trainable_token_indices): before PEFT loads the adapter, call "
            f"model.resize_token_embeddings({new}); eckart merge does"
            for old, new in sorted(sizes)
        ]


def plan_extract(
    base: ModelSource,
    tuned: ModelSource,
    *,
    rank: "int | Literal['noise'] | RankChoice | None" = None,
    energy: float | None = None,
    error: float | None = None,
    budget: str | int | Budget | None = None,
    target: str | Sequence[str] = "all-linear",
    exclude: str | Sequence[str] = (),
    modules_to_save: str | Sequence[str] = (),
    dtype: "str | torch.dtype" = "float32",
    balanced: bool = True,
    to: AdapterFormat | None = None,
    family: str | None = None,
) -> ExtractPlan:
    """Check an extraction from headers alone; arguments as for `extract`.

    Raises:
        MismatchError: the checkpoints do not belong together, or a pattern matches nothing.
        OptionError: an argument is invalid, or the budget is too small.
    """
    choice = RankChoice.given(rank=rank, energy=energy, error=error, budget=budget, knows_noise=True) or RankChoice(
        DEFAULT_RANK
    )
    data_type = float_dtype(dtype) or FLOAT32
    scope = Scope(as_patterns(target), as_patterns(exclude), as_patterns(modules_to_save))
    written = _written(to, family, scope)
    instead = "eckart merge adds it to its base, eckart analyze shows its ranks"
    original = with_fused_experts(open_model(base))
    changed = with_fused_experts(open_model(tuned, role="a fine-tuned model", instead=instead))
    parts, tuned_rows = split_tensors(original, changed, scope, written), with_vocabulary_of(original, changed)
    plan = ExtractPlan(original, tuned_rows, changed, choice, parts, data_type, balanced, written)
    if to == "peft" and isinstance(original, PipelineCheckpoint):
        msg = "a PEFT adapter is of one model, and this is a pipeline: give the folders of a component, or another `to`"
        raise OptionError(msg)
    if choice.noise and (codes := [view.name for view in plan.parts.matrices if is_quantized(plan, view)]):
        msg = "`rank=noise` needs weights stored as floating-point numbers, whose rounding is known; these are codes"
        raise OptionError.listing(msg, codes)
    if choice.budget is not None:
        plan.costs((), (), in_bytes=choice.budget.in_bytes).check(choice.budget, ())
    return plan


def _written(to: AdapterFormat | None, family: str | None, scope: Scope) -> "Written | None":
    """How the result is written, if not under the names of its base; only then are image models' names imported."""
    if to in (None, "peft") and family is None:
        return None
    from eckart.operations.extraction.image_names import Written

    return Written.given(to, family, scope.modules_to_save)


def is_quantized(plan: ExtractPlan, view: MatrixView) -> bool:
    """Whether one of the two weights of a matrix is stored as codes."""
    base, tuned = plan.base, plan.tuned
    infos = base.tensors.get(base.tied.get(view.tensor, view.tensor)), tuned.tensors[view.tensor]
    return any(info is None or bool(info.quantization) for info in infos)


def matrices_by_name(plan: ExtractPlan) -> dict[str, MatrixView]:
    """The matrices to factor, by the names of their layers."""
    return {view.name: view for view in plan.parts.matrices}


def _stored(checkpoint: Checkpoint, tensor: str) -> int:
    """Bytes of a tensor that may be tied to another."""
    info = checkpoint.tensors.get(checkpoint.tied.get(tensor, tensor))
    return info.nbytes if info else 0
