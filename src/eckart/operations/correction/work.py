"""The tensor work of a correction: fit the factors of each layer to its error, as its outputs show it.

Every layer gets the same rank: on SmolLM2, sharing ranks by the errors of the outputs, absolute or relative to the
outputs, closed less of the loss.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.checkpoint import DifferenceMatrix
from eckart.engine import Execution, Record, Task
from eckart.linalg.output_metric import best_correction, moment_factor, output_norm
from eckart.linalg.slabs import materialize
from eckart.operations.adapter_result import LayerRecord
from eckart.operations.adapter_writer import LayerTasks, LayerWork, empty_record, layer_record
from eckart.operations.correction.plan import CorrectionPlan
from eckart.operations.factors import layer_of
from eckart.operations.rank_change import check_range

T = TypeVar("T")


def correction_work(plan: CorrectionPlan, execution: Execution) -> LayerWork:
    """The work on the layers."""
    fitting, ranks = _Fitting(plan, execution), plan.ranks()
    notes = [note for note in [plan.moments.note(max(view.shape[1] for view in plan.views.values()))] if note]
    for note in notes:
        execution.progress.note(note)
    facts = {
        "inputs": [plan.quantized.fingerprint(), plan.original.fingerprint(), plan.moments.model],
        "tokens": dict(plan.moments.tokens),
        "ranks": ranks,
        "dtype": str(plan.dtype),
        "seed": execution.seed,
    }
    made = LayerTasks(
        plan.frame,
        fitting.tasks(plan.views, lambda name: fitting.record(name, ranks[name])),
        {name: view.shape for name, view in plan.views.items()},
        fitting.measure,
        skipped=plan.skipped,
        notes=tuple(notes),
    )
    return LayerWork(facts, lambda journal: made)


@dataclass(frozen=True)
class _Fitting:
    """A plan being executed; errors of weights are `(out_features, in_features)`."""

    plan: CorrectionPlan
    execution: Execution

    def tasks(self, names: Iterable[str], call: Callable[[str], T]) -> list[Task[T]]:
        """A task for each layer, with the bytes that it reads and occupies."""
        made = []
        for name in names:
            rows, columns = self.plan.views[name].shape
            memory = 8 * (4 * columns**2 + 3 * rows * columns + 2 * min(rows, columns) ** 2)
            nbytes = 4 * (columns**2 * len(self.plan.moments.tokens) + 2 * rows * columns)
            made.append(Task(name, nbytes, memory, lambda name=name: call(name)))
        return made

    def record(self, name: str, rank: int) -> Record:
        """The best factors of a layer's error."""
        error, factor, view = self._error(name), self._factor(name), self.plan.views[name]
        norm = output_norm(error, factor)
        if not norm:
            return empty_record("unchanged", norm, skipped_name=view.tensor)
        generator = self.execution.generator(name)
        correction, spectrum = best_correction(error, factor, rank=rank, generator=generator)
        # Factors of equal norm lose no range in a narrow dtype.
        sizes = torch.linalg.vector_norm(correction.lora_A, dim=1).sqrt()
        A = correction.lora_A / torch.where(sizes > 0, sizes, 1.0)[:, None]
        left, right = (A.T, (correction.lora_B * sizes).T) if view.transposed else (correction.lora_B * sizes, A)
        layer = layer_of(view, left.to(self.plan.dtype.torch).cpu(), right.to(self.plan.dtype.torch).cpu())
        layer = check_range(name, layer, norm)
        achieved = self._relative(error, factor, layer)
        return layer_record(layer, error=achieved, error_lower_bound=spectrum.error_bounds(rank)[0], fro_norm=norm)

    def measure(self, adapter: Adapter, layers: Sequence[LayerRecord]) -> list[LayerRecord]:
        """The records with errors of the factors in an adapter."""
        return [
            replace(layer, error=self._relative(self._error(layer.name), self._factor(layer.name), adapter[layer.name]))
            if layer.name in adapter
            else layer
            for layer in layers
        ]

    def _relative(self, error: Tensor, factor: Tensor, layer: AdapterLayer) -> float:
        product = layer.low_rank()
        wide = error.to(torch.float64) - product.lora_B.to(factor) @ product.lora_A.to(factor)
        return output_norm(wide, factor) / output_norm(error, factor)

    def _error(self, name: str) -> Tensor:
        view, device = self.plan.views[name], self.execution.torch_device()
        matrix = materialize(DifferenceMatrix(self.plan.original, self.plan.quantized, view, device))
        return matrix.T if view.transposed else matrix

    def _factor(self, name: str) -> Tensor:
        columns = self.plan.views[name].shape[1]
        return moment_factor(self.plan.moments.total(name, columns).to(self.execution.torch_device()))
