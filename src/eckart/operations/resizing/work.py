"""The tensor work of a resize: QR of the factors and an r×r SVD in float64, never the product."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.checkpoint import DType
from eckart.engine import Execution, Record, Task
from eckart.linalg import Spectrum
from eckart.operations.adapter_result import LayerRecord
from eckart.operations.adapter_writer import LayerTasks, empty_record, layer_record
from eckart.operations.rank_change import (
    at_rank,
    check_finite,
    check_range,
    measured_error,
    product_spectrum,
    update_norm,
    update_spectrum,
)
from eckart.operations.ranks import Ranks, ranks_from_spectra
from eckart.operations.resizing.plan import ResizePlan
from eckart.operations.select_layers import shapes_of

T = TypeVar("T")


@dataclass(frozen=True)
class Resizing:
    """A plan being executed."""

    plan: ResizePlan
    execution: Execution

    def ranks(self) -> Ranks:
        """The new rank of each layer."""
        choice, budget = self.plan.choice, self.plan.choice.budget
        if choice.rank is not None:
            return Ranks(dict.fromkeys(self.plan.names, choice.rank), {})
        costs = self.plan.costs(in_bytes=budget is not None and budget.in_bytes)
        return ranks_from_spectra(
            self.tasks, self._spectrum, choice, costs=costs, needed=self.plan.needed(), execution=self.execution
        )

    def tasks(self, names: Iterable[str], call: Callable[[str], T]) -> list[Task[T]]:
        """Tasks with the bytes that they read and occupy."""

        def task(name: str) -> Task[T]:
            layer, shape = self.plan.outline[name], shapes_of(self.plan.outline, [name])[name]
            nbytes = sum(tensor.nbytes for tensor in layer.tensors().values())
            memory = 8 * 8 * layer.rank * sum(shape)
            memory += 4 * 8 * min(shape) ** 2 if layer.rank > min(shape) else 0
            return Task(name, nbytes, memory, lambda: call(name))

        return [task(name) for name in names]

    def record(self, name: str, ranks: Ranks) -> Record:
        """The record of one layer at its new rank, or unchanged if it was not selected."""
        layer = check_finite(name, self.plan.adapter[name])
        chosen = name in ranks.by_name
        return resized(
            name,
            layer,
            ranks.by_name[name] if chosen else layer.rank,
            self.plan.dtype if chosen else None,
            self.execution,
        )

    def measure(self, adapter: Adapter, layers: Sequence[LayerRecord]) -> list[LayerRecord]:
        """The records of layers with errors measured again, after the factors of the adapter were changed."""
        source = self.plan.adapter
        return [
            replace(record, error=_error(source[record.name], adapter[record.name]))
            if record.name in adapter
            else record
            for record in layers
        ]

    def _spectrum(self, name: str, complete: bool) -> Spectrum:
        del complete  # it always is
        layer = check_finite(name, self.plan.adapter[name])
        return update_spectrum(name, layer, layer.unscaled())


def resize_tasks(plan: ResizePlan, execution: Execution) -> LayerTasks:
    """The work on the layers, ranks chosen, for which spectra are read where needed."""
    work, outline, notes = Resizing(plan, execution), plan.outline, plan.notes()
    for note in notes:
        execution.progress.note(note)
    ranks = work.ranks()
    facts = {
        "adapter": plan.adapter.fingerprint(),
        "choice": asdict(plan.choice),
        "names": plan.names,
        "dtype": str(plan.dtype),
        "seed": execution.seed,
    }
    return LayerTasks(
        plan.adapter,
        work.tasks(outline, lambda name: work.record(name, ranks)),
        shapes_of(outline, outline),
        facts,
        work.measure,
        guarantee=ranks.guarantee,
        notes=tuple(notes),
    )


def resized(name: str, layer: AdapterLayer, rank: int, dtype: DType | None, execution: Execution) -> Record:
    """The record of a layer at another rank; without factors at rank 0."""
    target = layer.unscaled()
    spectrum = product_spectrum(target)
    norm = update_norm(name, layer, spectrum.fro_norm)
    if rank == 0:
        return empty_record("no rank within the budget" if norm else "zero update", norm)
    new_dtype = dtype.torch if dtype else None
    result = at_rank(layer, target, rank, dtype=new_dtype, generator=execution.generator(name))
    check_range(name, result, norm)
    same = new_dtype in (None, layer.lora_A.dtype) and rank >= layer.rank
    error = 0.0 if same else _error(layer, result)
    least = min(spectrum.error_bounds(rank)[0], error)
    return layer_record(result, error=error, error_lower_bound=least, fro_norm=norm)


def _error(layer: AdapterLayer, result: AdapterLayer) -> float:
    """The relative error of a layer at another rank."""
    return measured_error(layer.unscaled(), result, scaling=layer.scaling)
