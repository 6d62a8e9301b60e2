"""The tensor work of a resize: QR of the factors and an r×r SVD in float64, never the product."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TypeVar

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.checkpoint import DType
from eckart.engine import Execution, Journal, Record, Task
from eckart.errors import NotFiniteError
from eckart.linalg import Spectrum, product_noise
from eckart.operations.adapter_result import LayerRecord
from eckart.operations.adapter_writer import LayerTasks, LayerWork, empty_record, layer_record
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
from eckart.operations.select_layers import parameter_of, shapes_of

T = TypeVar("T")


def resize_work(plan: ResizePlan, execution: Execution) -> LayerWork:
    """The work on the layers, which begins with spectra where ranks follow from them."""
    facts = {
        "adapter": plan.adapter.fingerprint(),
        "choice": asdict(plan.choice),
        "names": plan.names,
        "dtype": str(plan.dtype),
        "seed": execution.seed,
    }
    notes = plan.notes()
    for note in notes:
        execution.progress.note(note)
    return LayerWork(facts, partial(_layer_tasks, plan, execution, notes))


def _layer_tasks(plan: ResizePlan, execution: Execution, notes: Sequence[str], journal: Journal | None) -> LayerTasks:
    outline = plan.outline
    ranks = _ranks(plan, execution, journal)

    def record(name: str) -> Record:
        is_selected = name in ranks.by_name
        try:
            layer = check_finite(name, plan.adapter[name])
        except NotFiniteError as error:
            if is_selected:
                msg = f"{error}; `exclude={name}` leaves it out of the result"
                raise NotFiniteError(msg) from None
            return empty_record(f"left out: {error}", 0.0)
        if not is_selected:  # unchanged
            return resized(name, layer, layer.rank, None, execution)
        return resized(name, layer, ranks.by_name[name], plan.dtype, execution)

    return LayerTasks(
        plan.adapter,
        _tasks(plan, outline, record),
        shapes_of(outline, outline),
        partial(_measured, plan),
        guarantee=ranks.guarantee,
        notes=tuple(notes),
    )


def _ranks(plan: ResizePlan, execution: Execution, journal: Journal | None) -> Ranks:
    """The new rank of each selected layer."""
    choice = plan.choice
    if choice.rank is not None:
        return Ranks(dict.fromkeys(plan.names, choice.rank), {})

    if choice.noise:
        return _above_rounding(plan)

    def spectrum(name: str, complete: bool) -> Spectrum:
        del complete  # it always is
        layer = check_finite(name, plan.adapter[name])
        return update_spectrum(name, layer, layer.unscaled())

    costs = plan.costs(in_bytes=choice.budget is not None and choice.budget.in_bytes)
    tasks = partial(_tasks, plan)
    return ranks_from_spectra(
        tasks, spectrum, choice, costs=costs, needed=plan.needed(), execution=execution, journal=journal
    )


def _above_rounding(plan: ResizePlan) -> Ranks:
    """The directions of each layer's product that stand above the rounding of its factors; experts get one rank."""
    ranks, norms, needed = {}, {}, plan.needed()
    for name in plan.names:
        layer = check_finite(name, plan.adapter[name])
        known = update_spectrum(name, layer, layer.unscaled())
        A, B = layer.lora_A.flatten(1), layer.lora_B.flatten(1)
        edge = abs(layer.scaling) * product_noise(B, A)
        ranks[name] = max(int((known.singular_values > edge).sum()), int(name in needed))
        norms[name] = known.fro_norm
    highest: dict[str, int] = {}
    for name, rank in ranks.items():
        highest[parameter_of(name)] = max(rank, highest.get(parameter_of(name), 0))
    return Ranks({name: highest[parameter_of(name)] for name in ranks}, norms)


def _tasks(plan: ResizePlan, names: Iterable[str], call: Callable[[str], T]) -> list[Task[T]]:
    """Tasks with the bytes that they read and occupy."""

    def task(name: str) -> Task[T]:
        layer, shape = plan.outline[name], shapes_of(plan.outline, [name])[name]
        memory = 8 * 8 * layer.rank * sum(shape)
        memory += 4 * 8 * min(shape) ** 2 if layer.rank > min(shape) else 0
        return Task(name, layer.nbytes, memory, lambda: call(name))

    return [task(name) for name in names]


def _measured(plan: ResizePlan, adapter: Adapter, layers: Sequence[LayerRecord]) -> list[LayerRecord]:
    """The records of layers with errors measured again, after the factors of the adapter were changed."""
    return [_at_rank(record, plan.adapter[record.name], adapter.get(record.name)) for record in layers]


def _at_rank(record: LayerRecord, layer: AdapterLayer, result: AdapterLayer | None) -> LayerRecord:
    """The record of a layer whose factors were changed, or of one that was left out."""
    if result is None:
        return record if record.rank == 0 else replace(record, rank=0, error=1.0, error_lower_bound=1.0)
    error = measured_error(layer.unscaled(), result, scaling=layer.scaling)
    if result.rank == record.rank:
        return replace(record, error=error)
    least = min(product_spectrum(layer.unscaled()).error_bounds(result.rank)[0], error)
    return replace(record, rank=result.rank, error=error, error_lower_bound=least)


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
    error = 0.0 if same else measured_error(target, result, scaling=layer.scaling)
    least = min(spectrum.error_bounds(rank)[0], error)
    return layer_record(result, error=error, error_lower_bound=least, fro_norm=norm)
