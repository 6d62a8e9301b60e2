"""What a correction of a quantized model will fit and write, checked from headers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.adapter.adapter import Adapter
from eckart.checkpoint import Checkpoint, DType, MatrixView, as_patterns
from eckart.checkpoint.dtypes import FLOAT32
from eckart.checkpoint.fused_experts import with_fused_experts
from eckart.errors import MismatchError, OptionError
from eckart.formats.peft_config import task_type_of
from eckart.formats.sources import Source, open_adapter, open_model
from eckart.operations.extraction.scope import Scope, split_tensors
from eckart.operations.merging.plan import Adapters, plan_merge
from eckart.operations.output_dtype import float_dtype
from eckart.operations.preview import Match, Preview
from eckart.operations.rank_choice import HEADER_BYTES, Budget, RankChoice
from eckart.result import Skipped

if TYPE_CHECKING:
    import torch

    from eckart.operations.moments import Moments

NO_MOMENTS = "no second moments: calibration covers the linear layers of decoder blocks"


@dataclass(frozen=True)
class CorrectionPlan:
    """A correction, checked from headers.

    Attributes:
        quantized: the model to correct.
        original: the model that its outputs should equal.
        moments: second moments of the layers' inputs.
        rank: that every layer could have; together they get as many parameters as then.
        views: the matrices to correct, by the names of their layers.
        skipped: everything else, with the reason.
        dtype: data type of the factors.
        base_model: what the adapter's config names as its base.
    """

    quantized: Checkpoint
    original: Checkpoint
    moments: "Moments"
    rank: int
    views: dict[str, MatrixView]
    skipped: Sequence[Skipped]
    dtype: DType
    base_model: str

    made_by = "correct"

    @property
    def frame(self) -> Adapter:
        """The adapter without its layers."""
        task_type = task_type_of(map(str, self.quantized.config.get("architectures") or ()))
        return Adapter({}, {}, self.base_model, task_type)

    @property
    def inputs(self) -> list[Path]:
        """Files that are read."""
        return [*self.quantized.files, *self.original.files, self.moments.file]

    def choice(self) -> RankChoice:
        """The budget that the layers share."""
        return RankChoice(budget=Budget(self._params(), in_bytes=False))

    def written_bytes(self) -> int:
        """Size of the adapter, at most."""
        return self.dtype.itemsize * self._params() + HEADER_BYTES * len(self.views)

    def _params(self) -> int:
        return sum(min(self.rank, *view.shape) * sum(view.shape) for view in self.views.values())

    def preview(self) -> Preview:
        """What would be corrected, read and written."""
        matches = [Match(name, view.shape, ()) for name, view in self.views.items()]
        read = sum(
            model.tensors[model.tied.get(view.tensor, view.tensor)].nbytes
            for view in self.views.values()
            for model in (self.quantized, self.original)
        )
        notes = ["The errors decide how the layers share the ranks."]
        return Preview("correct", matches, self.skipped, read, self.written_bytes(), notes)


def plan_correct(
    quantized: Source,
    original: Source,
    *,
    moments: "Moments",
    rank: int,
    adapters: Adapters = (),
    target: str | Sequence[str] = "all-linear",
    exclude: str | Sequence[str] = (),
    dtype: "str | torch.dtype" = "float32",
    base_model: str | None = None,
) -> CorrectionPlan:
    """Check a correction from headers alone; arguments as for `correct`.

    Raises:
        MismatchError: the models do not belong together, or no targeted layer has second moments.
        OptionError: the rank is below 1.
    """
    if rank < 1:
        msg = f"`rank` must be at least 1, got {rank}"
        raise OptionError(msg)
    stored = with_fused_experts(open_model(quantized))
    goal = with_fused_experts(corrected_goal(original, adapters))
    parts = split_tensors(stored, goal, Scope(as_patterns(target), as_patterns(exclude), ()))
    views = {view.name: view for view in parts.matrices if view.name in moments and view.kind in ("linear", "conv1d")}
    skipped = [*parts.skipped, *(Skipped(v.name, NO_MOMENTS) for v in parts.matrices if v.name not in views)]
    if not views:
        msg = f"{moments.file} has second moments of none of the layers to correct; was it collected from this model?"
        raise MismatchError.listing(msg, [each.name for each in parts.matrices])
    return CorrectionPlan(
        stored, goal, moments, rank, views, skipped, float_dtype(dtype) or FLOAT32, base_model or stored.source
    )


def corrected_goal(original: Source, adapters: Adapters) -> Checkpoint:
    """The model whose outputs a correction aims at: the original, with adapters if it carries some."""
    goal = open_model(original, role="the original model")
    if not adapters:
        return goal
    from eckart.operations.model_writer.planned import planned  # imports torch

    return planned(plan_merge(goal, [open_adapter(each) for each in _listed(adapters)], dtype=FLOAT32))


def _listed(adapters: Adapters) -> Sequence[Adapter | str | Path]:
    return [adapters] if isinstance(adapters, (Adapter, str, Path)) else adapters
