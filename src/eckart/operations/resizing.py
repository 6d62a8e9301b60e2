"""An adapter at another rank: the best one of that rank, energy, error or budget, exactly, from its factors alone."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.engine import Execution, Record, Task, run_tasks
from eckart.formats import load_adapter
from eckart.operations.adapter_result import AdapterResult, LayerRecord, Refine
from eckart.operations.adapter_writer import AdapterWriter, record_of, record_of_none
from eckart.operations.preview import Match, Preview
from eckart.operations.rank_change import at_rank, check_finite, known_spectrum, least_error, measured_error
from eckart.operations.rank_choice import RankChoice
from eckart.operations.ranks import Costs, choose
from eckart.operations.select_layers import select_layers, shapes_of
from eckart.result import Skipped

DEFAULT_EXECUTION = Execution()
T = TypeVar("T")


@dataclass(frozen=True)
class ResizePlan:
    """What a resize will do, known and checked from headers.

    Attributes:
        adapter: to be resized.
        choice: of the ranks.
        names: layers that get another rank; the others are carried along as they are.
        dtype: of the resized factors; None leaves each layer its own.
    """

    adapter: Adapter
    choice: RankChoice
    names: tuple[str, ...]
    dtype: torch.dtype | None = None

    def preview(self) -> Preview:
        """What would be resized, read and written."""
        outline = self.adapter.outline()
        chosen = set(self.names)
        shapes = shapes_of(outline, self.names)
        matches = [Match(name, shape, (outline[name].rank,)) for name, shape in shapes.items()]
        kept = [Skipped(name, "not targeted: kept as it is") for name in outline if name not in chosen]
        return Preview("resize", matches, kept, outline.nbytes, self.written_bytes())

    def written_bytes(self) -> int:
        """Bytes of the result's tensors, at most."""
        costs, outline = self.costs(in_bytes=True), self.adapter.outline()
        ranks = {name: self.choice.rank or outline[name].rank for name in self.names}
        most = costs.fixed + sum(cost * ranks[name] for name, cost in costs.by_rank.items())
        budget = self.choice.budget
        return min(most, budget.amount) if budget and budget.in_bytes else most

    def costs(self, *, in_bytes: bool) -> Costs:
        """What the layers to be resized take for each rank, and everything else altogether."""
        return Costs.of(self.adapter.outline(), self.names, self.dtype, in_bytes=in_bytes)

    def needed(self) -> set[str]:
        """Layers that stay even where their update is zero: they hold more than that."""
        outline = self.adapter.outline()
        return {name for name in self.names if outline[name].bias is not None or outline[name].magnitude is not None}

    def ranks(self, execution: Execution) -> tuple[dict[str, int], str | None]:
        """The rank of each layer by name, and what is proved of a shared budget."""
        if self.choice.rank is not None:
            return dict.fromkeys(self.names, self.choice.rank), None
        tasks = self.tasks(self.names, lambda _, layer: known_spectrum(layer.low_rank()))
        spectra = {task.name: found for task, found in run_tasks(tasks, stage="Reading spectra", execution=execution)}
        in_order = {name: spectra[name] for name in self.names}
        budget = self.choice.budget
        return choose(in_order, self.choice, self.costs(in_bytes=budget is not None and budget.in_bytes), self.needed())

    def tasks(self, names: Iterable[str], call: Callable[[str, AdapterLayer], T]) -> list[Task[T]]:
        """Work on layers, each read when its turn comes."""
        outline = self.adapter.outline()

        def task(name: str) -> Task[T]:
            product, rank = outline[name].low_rank(), outline[name].rank
            nbytes = sum(tensor.nbytes for tensor in outline[name].tensors().values())
            held = 8 * 8 * rank * sum(product.shape) + (
                4 * 8 * min(product.shape) ** 2 if rank > min(product.shape) else 0
            )
            return Task(name, nbytes, held, lambda: call(name, check_finite(name, self.adapter[name])))

        return [task(name) for name in names]


def plan_resize(
    adapter: Adapter | str | Path,
    *,
    rank: int | RankChoice,
    target: Sequence[str] = (),
    exclude: Sequence[str] = (),
    dtype: torch.dtype | None = None,
) -> ResizePlan:
    """Check a resize from headers alone; see `resize`.

    Raises:
        MismatchError: a pattern matches nothing.
        OptionError: the budget cannot be kept.
    """
    adapter = adapter if isinstance(adapter, Adapter) else load_adapter(adapter)
    choice = rank if isinstance(rank, RankChoice) else RankChoice(rank=rank)
    plan = ResizePlan(adapter, choice, select_layers(adapter.outline(), target, exclude), dtype)
    if choice.budget is not None:
        plan.costs(in_bytes=choice.budget.in_bytes).check(choice.budget, plan.needed())
    return plan


def resize(
    adapter: Adapter | str | Path,
    *,
    rank: int | RankChoice,
    output: str | Path | None = None,
    target: Sequence[str] = (),
    exclude: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    execution: Execution = DEFAULT_EXECUTION,
    force: bool = False,
    refine: Refine | None = None,
) -> AdapterResult:
    """The best adapter of another rank, layer by layer: QR of the factors and an r×r SVD in float64, never the product.

    A higher rank leaves the update as it is: lora_B gets columns of zeros and lora_A random rows as PEFT draws them, so
    that training can go on. A layer that has the rank asked for keeps its factors bit for bit. Scaling, biases, DoRA's
    magnitudes and tensors saved whole stay; of DoRA the error is that of the direction's update.

    Args:
        adapter: a value, or the place of its files.
        rank: exactly this rank for every layer (above a matrix's shorter side too, as PEFT allows), or a
            `RankChoice` by energy, error, or a budget for the whole adapter. By these a layer whose update is zero
            or earns no rank is left out and named, unless it holds a bias or magnitude: then it gets rank 1.
        output: where to write it, in the format that it came in; finished layers are kept beside it until it is whole.
        target: patterns of the layers to resize; all without one. The others are carried along as they are.
        exclude: patterns of layers to leave as they are; wins.
        dtype: of the resized factors; None leaves each layer its own.
        execution: workers, memory, progress, resume, seed.
        force: replace an existing output.
        refine: what the adapter goes through before it is written, such as `eckart.training.Distillation`; errors are
            then measured again.

    Returns:
        `AdapterResult`: of each layer the rank, the error measured on the factors as written, and the least possible.

    Raises:
        MismatchError: a pattern matches nothing, or no layer is left.
        OptionError: the budget cannot be kept, or factors do not fit in the dtype.
        OutputError: the output exists or cannot be written.
        NotFiniteError: a tensor holds NaN or Inf.
    """
    began = time.monotonic()
    plan = plan_resize(adapter, rank=rank, target=target, exclude=exclude, dtype=dtype)
    refined = partial(_refined, plan.adapter, refine) if refine is not None else None
    writer = AdapterWriter(
        "resize", plan.adapter, Path(output) if output is not None else None, execution, force, refined
    )
    writer.check(plan.adapter.files, plan.written_bytes())
    ranks, guarantee = plan.ranks(execution)

    def work(name: str, layer: AdapterLayer) -> Record:
        if name not in ranks:
            return _resized(name, layer, layer.rank, None, execution)
        return _resized(name, layer, ranks[name], dtype, execution)

    outline = plan.adapter.outline()
    facts = {
        "adapter": plan.adapter.fingerprint(), "choice": asdict(plan.choice), "names": plan.names, "dtype": str(dtype),
        "seed": execution.seed,
    }  # fmt: skip
    return writer.make(plan.tasks(outline, work), shapes_of(outline, outline), facts, guarantee=guarantee, began=began)


def _resized(name: str, layer: AdapterLayer, rank: int, dtype: torch.dtype | None, execution: Execution) -> Record:
    """The record of one layer at another rank."""
    target = layer.low_rank()
    spectrum = known_spectrum(target)
    norm = spectrum.fro_norm
    if rank == 0:
        return record_of_none("the budget left it no rank" if norm else "its update is zero", norm)
    found = check_finite(
        name, at_rank(layer, target, rank, dtype=dtype, generator=execution.generator(name)), written=True
    )
    same = dtype in (None, layer.lora_A.dtype) and rank >= layer.rank
    error = 0.0 if same else measured_error(target, found, norm)
    return record_of(found, error=error, error_lower_bound=min(least_error(spectrum, rank), error), fro_norm=norm)


def _refined(
    source: Adapter, refine: Refine, adapter: Adapter, records: list[LayerRecord]
) -> tuple[Adapter, list[LayerRecord]]:
    """The refined adapter, and the records with its errors; both as they were where nothing is refined."""
    refined = refine(adapter)
    if refined is adapter:
        return adapter, records
    return refined, [
        replace(record, error=measured_error(source[record.name].low_rank(), refined[record.name], record.fro_norm))
        if record.name in refined
        else record
        for record in records
    ]
