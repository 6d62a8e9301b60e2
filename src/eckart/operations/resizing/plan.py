"""Plans a resize from headers: which layers change, and what is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from eckart.adapter.adapter import Adapter
from eckart.adapter.outline import AdapterOutline
from eckart.checkpoint import DType
from eckart.formats.sources import open_adapter
from eckart.operations.costs import Costs, break_even_note
from eckart.operations.layer_scales import with_scales
from eckart.operations.output_dtype import float_dtype
from eckart.operations.preview import Match, Preview
from eckart.operations.rank_choice import Budget, RankChoice
from eckart.operations.select_layers import select_layers, shapes_of
from eckart.result import Skipped

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ResizePlan:
    """A resize, checked from headers.

    Attributes:
        adapter: the adapter to resize.
        choice: how the ranks are chosen.
        names: layers to resize; the others are unchanged.
        dtype: data type of the resized factors; None keeps that of each layer.
    """

    adapter: Adapter
    choice: RankChoice
    names: tuple[str, ...]
    dtype: DType | None = None

    made_by = "resize"

    @property
    def frame(self) -> Adapter:
        """The adapter, whose layers will be replaced."""
        return self.adapter

    @property
    def inputs(self) -> Sequence[Path]:
        """Files that are read."""
        return self.adapter.files

    @cached_property
    def outline(self) -> AdapterOutline:
        """The adapter's headers."""
        return self.adapter.outline()

    def preview(self) -> Preview:
        """What would be resized, read and written."""
        shapes = shapes_of(self.outline, self.names)
        matches = [Match(name, shape, (self.outline[name].rank,), self.choice.rank) for name, shape in shapes.items()]
        skipped = [Skipped(name, "not targeted") for name in self.outline if name not in shapes]
        notes = self.notes() if self.choice.rank else ["The spectra decide the new ranks."]
        return Preview("resize", matches, skipped, self.outline.nbytes, self.written_bytes(), notes)

    def notes(self) -> list[str]:
        """Notes about a given rank, for the user to see before the work starts."""
        rank = self.choice.rank
        note = (
            break_even_note((shape, rank) for shape in shapes_of(self.outline, self.names).values()) if rank else None
        )
        return [note] if note else []

    def written_bytes(self) -> int:
        """Size of the result, at most."""
        ranks = {name: self.choice.rank or self.outline[name].rank for name in self.names}
        most, budget = self.costs(in_bytes=True).total(ranks), self.choice.budget
        return min(most, budget.amount) if budget and budget.in_bytes else most

    def costs(self, *, in_bytes: bool) -> Costs:
        """The cost of one rank of each layer to resize, and of everything else."""
        return Costs.of_adapter(self.outline, self.names, self.dtype, in_bytes=in_bytes)

    def needed(self) -> set[str]:
        """Layers that are written even if their update is zero, for their bias or magnitude."""
        layers = {name: self.outline[name] for name in self.names}
        return {name for name, layer in layers.items() if layer.bias is not None or layer.magnitude is not None}


def plan_resize(
    adapter: Adapter | str | Path,
    *,
    rank: "int | Literal['noise'] | RankChoice | None" = None,
    energy: float | None = None,
    error: float | None = None,
    budget: str | int | Budget | None = None,
    target: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    scale: Mapping[str, float] | None = None,
    dtype: "str | torch.dtype | None" = None,
) -> ResizePlan:
    """Check a resize from headers alone; arguments as for `resize`.

    Raises:
        MismatchError: a pattern matches nothing.
        OptionError: an argument is invalid, or the budget is too small.
    """
    choice = RankChoice.given(rank=rank, energy=energy, error=error, budget=budget, knows_noise=True) or RankChoice()
    data_type = float_dtype(dtype)
    adapter = with_scales(open_adapter(adapter), scale or {})
    plan = ResizePlan(adapter, choice, select_layers(adapter.outline(), target, exclude), data_type)
    if choice.budget is not None:
        plan.costs(in_bytes=choice.budget.in_bytes).check(choice.budget, plan.needed())
    return plan
