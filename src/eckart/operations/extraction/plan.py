"""What an extraction will factor, save and write, checked from headers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.adapter.adapter import Adapter
from eckart.checkpoint import Checkpoint, DType, MatrixView, as_patterns
from eckart.checkpoint.dtypes import FLOAT32
from eckart.checkpoint.fused_experts import with_fused_experts
from eckart.checkpoint.open import ModelSource
from eckart.formats.sources import open_model
from eckart.operations.costs import Costs, break_even_note
from eckart.operations.extraction.scope import Parts, Scope, split_tensors
from eckart.operations.output_dtype import float_dtype
from eckart.operations.preview import Match, Preview
from eckart.operations.rank_choice import DEFAULT_RANK, HEADER_BYTES, Budget, RankChoice

if TYPE_CHECKING:
    import torch

_TASK_TYPES = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}


@dataclass(frozen=True)
class ExtractPlan:
    """An extraction, checked from headers.

    Attributes:
        base: the base model.
        tuned: the fine-tuned model.
        choice: how the ranks are chosen.
        parts: every tensor, by how it is processed.
        dtype: data type of the factors.
        balanced: split √S to both factors; otherwise lora_B carries S and lora_A has orthonormal rows.
    """

    base: Checkpoint
    tuned: Checkpoint
    choice: RankChoice
    parts: Parts
    dtype: DType
    balanced: bool

    made_by = "extract"

    @property
    def frame(self) -> Adapter:
        """The adapter without its layers and tensors saved in full."""
        return Adapter({}, {}, self.base.source, _task_type(self.base))

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
        for names, item_bytes in ((saved, None), (biases, 4)):
            for info in (self.tuned.tensors[name] for name in names):
                fixed += prod(info.shape) * ((item_bytes or info.dtype.itemsize) if in_bytes else 1)
        return Costs(by_rank, fixed)

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
            Match(view.name, view.shape, (), ranks[view.name] if ranks else None) for view in self.parts.matrices
        ]
        names = [*{view.tensor for view in self.parts.matrices}, *self.parts.saved, *self.parts.biases]
        read = sum(self.tuned.tensors[name].nbytes + _stored(self.base, name) for name in names)
        return Preview("extract", matches, self.parts.skipped, read, self.written_bytes(), self.notes(ranks))

    def notes(self, ranks: Mapping[str, int] | None) -> list[str]:
        """Notes about ranks, for the user to see before the work starts."""
        if ranks is None:
            return ["The spectra decide the ranks."]
        note = break_even_note((view.shape, ranks[view.name]) for view in self.parts.matrices)
        return [note] if note else []


def plan_extract(
    base: ModelSource,
    tuned: ModelSource,
    *,
    rank: int | RankChoice | None = None,
    energy: float | None = None,
    error: float | None = None,
    budget: str | int | Budget | None = None,
    target: str | Sequence[str] = "all-linear",
    exclude: str | Sequence[str] = (),
    modules_to_save: str | Sequence[str] = (),
    dtype: "str | torch.dtype" = "float32",
    balanced: bool = True,
) -> ExtractPlan:
    """Check an extraction from headers alone; arguments as for `extract`.

    Raises:
        MismatchError: the checkpoints do not belong together, or a pattern matches nothing.
        OptionError: an argument is invalid, or the budget is too small.
    """
    choice = RankChoice.given(rank=rank, energy=energy, error=error, budget=budget) or RankChoice(DEFAULT_RANK)
    data_type = float_dtype(dtype) or FLOAT32
    scope = Scope(as_patterns(target), as_patterns(exclude), as_patterns(modules_to_save))
    instead = "eckart merge adds it to its base, eckart analyze shows its ranks"
    original = with_fused_experts(open_model(base))
    changed = with_fused_experts(open_model(tuned, role="a fine-tuned model", instead=instead))
    plan = ExtractPlan(original, changed, choice, split_tensors(original, changed, scope), data_type, balanced)
    if choice.budget is not None:
        plan.costs((), (), in_bytes=choice.budget.in_bytes).check(choice.budget, ())
    return plan


def matrices_by_name(plan: ExtractPlan) -> dict[str, MatrixView]:
    """The matrices to factor, by the names of their layers."""
    return {view.name: view for view in plan.parts.matrices}


def _stored(checkpoint: Checkpoint, tensor: str) -> int:
    """Bytes of a tensor that may be tied to another."""
    info = checkpoint.tensors.get(checkpoint.tied.get(tensor, tensor))
    return info.nbytes if info else 0


def _task_type(base: Checkpoint) -> str | None:
    """PEFT's task type of the model class in the config."""
    names = [str(name) for name in base.config.get("architectures") or ()]
    return next((task for name in names for end, task in _TASK_TYPES.items() if name.endswith(end)), None)
