"""Compares two adapters by their factors: norms, cosine, angles and overlap of every update."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.adapter.adapter import Adapter
from eckart.adapter.outline import AdapterOutline
from eckart.checkpoint import Checkpoint, MatrixView
from eckart.engine import Execution, Task, run_tasks
from eckart.errors import MismatchError
from eckart.formats.common_names import to_common_names
from eckart.operations.comparison.result import Comparison, MatrixComparison, Unpaired
from eckart.operations.placement import Term, find_places
from eckart.operations.preview import Match, Preview
from eckart.operations.select_layers import select_layers
from eckart.result import Skipped

if TYPE_CHECKING:
    from eckart.checkpoint import WeightMatrix
    from eckart.operations.weight_update import Update


@dataclass(frozen=True)
class AdapterPair:
    """Two adapters of the same base, checked from headers.

    Attributes:
        adapters: A and B.
        names: the user's names for them.
        base: the model that they adapt; None if it was not given.
        places: for each module that both adapt, its matrix in the base.
        shared, alone: modules that both adapt, and that only one adapts.
        skipped: what is not compared, and why.
        directions: number of leading directions whose overlap is computed.
        execution: how the work is run.
    """

    adapters: tuple[Adapter, Adapter]
    names: tuple[str, str]
    base: Checkpoint | None
    places: dict[str, MatrixView]
    shared: list[str]
    alone: list[str]
    skipped: list[Skipped]
    directions: int
    execution: Execution

    @classmethod
    def checked(
        cls,
        adapters: tuple[Adapter, Adapter],
        names: tuple[str, str],
        base: Checkpoint | None,
        *,
        directions: int,
        patterns: tuple[Sequence[str], Sequence[str]],
        execution: Execution,
    ) -> AdapterPair:
        """Plan the comparison of two adapters from headers.

        Raises:
            MismatchError: they are for different bases, or a pattern matches nothing.
        """
        first, second = to_common_names(adapters, base)
        adapters = first, second
        outlines = [adapter.outline() for adapter in adapters]
        layers = {name: layer for outline in reversed(outlines) for name, layer in outline.items()}
        taken = select_layers(replace(outlines[0], layers=layers), *patterns)
        shared, alone, skipped = _paired(outlines, names, set(taken))
        skipped += [Skipped(name, "not targeted") for name in layers if name not in taken]
        places = {}
        if base is not None:
            found = find_places(base, outlines)
            changed = [item for changes in found.changes.values() for item in changes.items()]
            places = {term.key: found.views[view] for view, terms in changed for term in terms if term.part == "update"}
        return cls(adapters, names, base, places, shared, alone, skipped, directions, execution)

    @property
    def inputs(self) -> list[Path]:
        """Files that are read, which no output may replace."""
        files = [file for adapter in self.adapters for file in adapter.files]
        return [*files, *(self.base.files if self.base else ())]

    def preview(self) -> Preview:
        """What would be read and compared, from headers."""
        outlines = [adapter.outline() for adapter in self.adapters]
        matches = []
        for name in [*self.shared, *self.alone]:
            layers = [outline.get(name) for outline in outlines]
            shape = next(layer.update_shape for layer in layers if layer)
            ranks = tuple(layer.rank if layer else 0 for layer in layers)
            matches.append(Match(name, shape, ranks))
        read = sum(self._nbytes(name) for name in [*self.shared, *self.alone])
        return Preview("compare", matches, self.skipped, read, 0)

    def compare(self) -> Comparison:
        """Read every layer of both once and compare them."""
        began = time.monotonic()
        tasks = [self._task(name) for name in [*self.shared, *self.alone]]
        results = {task.name: result for task, result in run_tasks(tasks, stage="Comparing", execution=self.execution)}
        return Comparison(
            kind="adapters",
            a=self.names[0],
            b=self.names[1],
            base=None if self.base is None else self.base.source,
            matrices=[result for name in self.shared if isinstance(result := results[name], MatrixComparison)],
            unpaired=[result for name in self.alone if isinstance(result := results[name], Unpaired)],
            skipped=self.skipped,
            seconds=time.monotonic() - began,
        )

    def _task(self, name: str) -> Task[MatrixComparison | Unpaired]:
        nbytes = self._nbytes(name)
        memory = 16 * nbytes
        if name in self.places:
            rows, columns = self.places[name].stored_shape
            memory += 3 * 4 * rows * columns + 3 * 8 * min(rows, columns) ** 2
        work = self._compare_one if name in self.shared else self._measure_one
        return Task(name, nbytes, memory, lambda: work(name))

    def _nbytes(self, name: str) -> int:
        layers = [adapter.outline().get(name) for adapter in self.adapters]
        return sum(layer.lora_A.nbytes + layer.lora_B.nbytes for layer in layers if layer)

    def _measure_one(self, name: str) -> Unpaired:
        side = "a" if name in self.adapters[0].layers else "b"
        adapter = self.adapters[0] if side == "a" else self.adapters[1]
        from eckart.operations.rank_change import low_rank_of

        return Unpaired(name, side, low_rank_of(name, adapter[name]).fro_norm)

    def _compare_one(self, name: str) -> MatrixComparison:
        import torch

        from eckart.checkpoint import WeightMatrix
        from eckart.operations.comparison.measures import compare_updates
        from eckart.operations.comparison.updated import intruders_of, updated
        from eckart.operations.rank_change import low_rank_of

        layers = [adapter[name] for adapter in self.adapters]
        a, b = (low_rank_of(name, layer) for layer in layers)
        dtype = torch.float64 if all(layer.lora_A.dtype == torch.float64 for layer in layers) else torch.float32
        found = compare_updates(name, a, b, directions=self.directions, dtype=dtype)
        if self.base is None or name not in self.places:
            return found
        device = self.execution.torch_device()
        weight = WeightMatrix(self.base, self.places[name])
        tuned = (updated(weight, self._update(name, side, weight), device) for side in (0, 1))
        return intruders_of(found, WeightMatrix(self.base, self.places[name], device), tuned, self.execution)

    def _update(self, name: str, side: int, weight: WeightMatrix) -> Update:
        """The update of a matrix of the base by one side, including DoRA's norms."""
        from eckart.linalg.slabs import compute_dtype
        from eckart.operations.weight_update import update_of

        terms, dtype = [Term(side, name, "update")], compute_dtype(weight)
        return update_of(terms, self.adapters, (1.0, 1.0), dtype=dtype, view=weight.view, slabs=weight.slabs)


def _paired(
    outlines: Sequence[AdapterOutline], names: tuple[str, str], taken: set[str]
) -> tuple[list[str], list[str], list[Skipped]]:
    """Modules that both adapt in the same shape, modules that only one adapts, and what is not compared."""
    both = [name for name in outlines[0] if name in taken and name in outlines[1].layers]
    alone = [name for outline in outlines for name in outline if name in taken and name not in both]
    if not both:
        example = [next((name for name in outline if name in taken), "none") for outline in outlines]
        msg = (
            f"{names[0]} and {names[1]} adapt no module in common (such as {example[0]} and {example[1]}): "
            "there is nothing to compare; check that both are for one model and use the same module names"
        )
        raise MismatchError(msg)
    faults = {}
    for name in both:
        first, second = (outline[name].update_shape for outline in outlines)
        if first != second:
            faults[name] = f"its update is {first} in A and {second} in B"
    if len(faults) == len(both):
        msg = f"{names[0]} and {names[1]} are adapters for different bases"
        raise MismatchError.listing(msg, [f"{name}: {fault}" for name, fault in faults.items()])
    skipped = [Skipped(name, fault) for name, fault in faults.items()]
    for outline in outlines:
        skipped += _not_factors(outline, taken)
    return [name for name in both if name not in faults], alone, skipped


def _not_factors(outline: AdapterOutline, taken: set[str]) -> list[Skipped]:
    """Changes by an adapter that are not low-rank updates, and therefore not compared."""
    found = [Skipped(name, "saved completely, not as factors") for name in outline.modules_to_save]
    for name, layer in outline.items():
        if name in taken and layer.bias is not None:
            found.append(Skipped(f"{name}.bias", "bias"))
        if name in taken and layer.magnitude is not None:
            found.append(Skipped(f"{name}.magnitude", "DoRA magnitude: only the factors are compared"))
    return found
