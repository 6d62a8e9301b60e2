"""The tensor work of a conversion to plain LoRA: the change of each replaced matrix, streamed and factored."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from eckart.adapter.adapter import Adapter
from eckart.checkpoint import WeightMatrix
from eckart.engine import Execution, Record, Task, run_tasks
from eckart.linalg.block_sizes import RESIDENT_BYTES, SLAB_BYTES
from eckart.linalg.slabs import Streamed
from eckart.operations.adapter_result import LayerRecord
from eckart.operations.adapter_writer import LayerTasks, LayerWork, empty_record, layer_record
from eckart.operations.factors import error_of, factor, layer_of
from eckart.operations.plain_lora.plan import LoraPlan
from eckart.operations.rank_change import check_finite, check_range, measured_error
from eckart.operations.rank_choice import RankChoice
from eckart.operations.resizing.work import resized
from eckart.operations.select_layers import shapes_of
from eckart.operations.weight_update import update_of

T = TypeVar("T")


def lora_work(plan: LoraPlan, execution: Execution) -> LayerWork:
    """The work on the layers, in the order of the adapter; new ones come last."""
    outline = plan.adapter.outline()
    names = [*outline, *(name for name in plan.replaced if name not in outline)]
    kept = shapes_of(outline, plan.kept)
    shapes = {name: kept.get(name) or plan.replaced[name].view.shape for name in names}
    facts = {
        "inputs": [plan.adapter.fingerprint(), plan.base.fingerprint()],
        "choice": asdict(plan.choice),
        "dtype": str(plan.dtype),
        "seed": execution.seed,
    }
    tasks = [_task(plan, name, partial(_record, plan, name, execution)) for name in names]
    made = LayerTasks(plan.frame, tasks, shapes, partial(_measured, plan, execution), skipped=plan.skipped)
    return LayerWork(facts, lambda journal: made)


def _change(plan: LoraPlan, name: str) -> Streamed:
    """What the adapter adds to the matrix of a replaced layer, computed in float64."""
    it = plan.replaced[name]
    weight = WeightMatrix(plan.base, it.view)

    def wide() -> Iterator[Tensor]:
        return (slab.double() for slab in weight.slabs())

    update = update_of(it.terms, [plan.adapter], [1.0], dtype=torch.float64, view=it.view, slabs=wide)

    def blocks() -> Iterator[Tensor]:
        start = 0
        for slab in wide():
            yield (update.apply(slab, start) - slab).float()
            start += len(slab)

    return Streamed(weight.shape, torch.float32, weight.device, blocks)


def _record(plan: LoraPlan, name: str, execution: Execution) -> Record:
    """The record of one layer: computed from the base, or unchanged."""
    if name not in plan.replaced:
        layer = check_finite(name, plan.adapter[name])
        return resized(name, layer, layer.rank, None, execution)
    view, rank = plan.replaced[name].view, plan.rank_of(name)
    choice = RankChoice(rank) if rank else plan.choice
    result = factor(_change(plan, name), choice, execution.generator(name), dtype=plan.dtype.torch)
    if not result.tensors:
        return empty_record("unchanged", 0.0)
    bias = plan.adapter[name].bias if name in plan.adapter else None
    if bias is not None:
        bias = (bias.double() * plan.adapter[name].scaling).to(bias.dtype)
    layer = layer_of(view, result.tensors["left"], result.tensors["right"], bias=bias)
    return layer_record(check_range(name, layer, result.facts["fro_norm"]), **result.facts)


def _measured(
    plan: LoraPlan, execution: Execution, adapter: Adapter, layers: Sequence[LayerRecord]
) -> list[LayerRecord]:
    """The records of layers with errors measured again, on their factors as saved."""

    def error(record: LayerRecord) -> float:
        name = record.name
        if name in plan.replaced:
            return error_of(_change(plan, name), adapter[name], plan.replaced[name].view, norm=record.fro_norm)
        source = plan.adapter[name]
        return measured_error(source.unscaled(), adapter[name], scaling=source.scaling)

    known = [record for record in layers if record.name in adapter and record.fro_norm]
    tasks = [_task(plan, record.name, partial(error, record)) for record in known]
    errors = {task.name: value for task, value in run_tasks(tasks, stage="Measuring errors", execution=execution)}
    return [replace(record, error=errors.get(record.name, record.error)) for record in layers]


def _task(plan: LoraPlan, name: str, call: Callable[[], T]) -> Task[T]:
    """A task for one layer, with the bytes that it reads and occupies."""
    if name not in plan.replaced:
        layer = plan.adapter.outline()[name]
        return Task(name, layer.nbytes, 64 * layer.rank * sum(layer.update_shape), call)
    view = plan.replaced[name].view
    rows, columns = view.stored_shape
    memory = min(4 * rows * columns, RESIDENT_BYTES) + 6 * SLAB_BYTES + 8 * 160 * (rows + columns)
    memory += 0 if plan.choice.rank else 32 * min(rows, columns) ** 2
    return Task(name, plan.base.tensors[view.tensor].nbytes, memory, call)
