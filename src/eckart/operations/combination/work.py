"""The tensor work of a combination: the spectra of the combined updates, and each layer that results."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.checkpoint import WeightMatrix
from eckart.engine import Execution, Journal, Record, Task
from eckart.errors import OptionError
from eckart.linalg import LowRank, Spectrum, as_slabs, spectrum
from eckart.linalg.finite import count_non_finite, too_large
from eckart.linalg.scaling import frobenius_norm
from eckart.operations.adapter_result import LayerRecord
from eckart.operations.adapter_writer import LayerTasks, LayerWork, empty_record, layer_record
from eckart.operations.combination.core_methods import CoreCombination, combined_core, shared_error
from eckart.operations.combination.plan import CombinePlan
from eckart.operations.combination.pruning import combined_update
from eckart.operations.combination.saved import added_tensors, saved_tensors
from eckart.operations.combination.stacking import (
    Weighted,
    common_scale,
    exact_sum,
    formed,
    stacked_layer,
    term,
    unscaled_layer,
)
from eckart.operations.factors import error_of_product, factor
from eckart.operations.rank_change import (
    at_rank,
    check_finite,
    check_range,
    measured_error,
    padded,
    product_spectrum,
    update_norm,
    update_spectrum,
    zero_layer,
)
from eckart.operations.rank_choice import RankChoice
from eckart.operations.ranks import Ranks, leading_spectrum, ranks_from_spectra
from eckart.operations.select_layers import parameter_of
from eckart.operations.weight_update import update_of

T = TypeVar("T")


@dataclass(frozen=True)
class Combining:
    """A plan being executed."""

    plan: CombinePlan
    execution: Execution

    def ranks(self, journal: Journal | None) -> Ranks:
        """The rank of each layer; empty if the ranks are those of an exact sum."""
        choice = self.plan.choice
        if choice is None or choice.rank is not None:
            return Ranks(dict.fromkeys(self.plan.terms, choice.rank) if choice and choice.rank else {}, {})
        costs = self.plan.costs(in_bytes=choice.budget is not None and choice.budget.in_bytes)
        return ranks_from_spectra(
            self.tasks,
            self._spectrum,
            choice,
            costs=costs,
            needed=self.plan.needed(),
            execution=self.execution,
            journal=journal,
        )

    def tasks(self, names: Iterable[str], call: Callable[[str], T]) -> list[Task[T]]:
        """Tasks with the bytes that they read and occupy."""

        def task(name: str) -> Task[T]:
            layers = self.plan.layers(name)
            rows, columns = self.plan.shapes[name]
            rank = sum(layer.rank for layer in layers)
            dense = self.plan.is_dense(name) or rank > min(rows, columns)
            memory = 6 * 4 * rows * columns if dense else 8 * 8 * rank * (rows + columns)
            nbytes = sum(tensor.nbytes for layer in layers for tensor in layer.tensors().values())
            return Task(name, nbytes, memory, lambda: call(name))

        return [task(name) for name in names]

    def record(self, name: str, rank: int | None) -> Record:
        """The record of one layer.

        Args:
            name: of the module.
            rank: None keeps that of the sum, or the highest of the inputs where the update is formed as a matrix.
        """
        if self.plan.is_dense(name):
            return self._dense_record(name, rank)
        return self._core_record(name, rank) if self.plan.mixture.is_in_core else self._sum_record(name, rank)

    def _spectrum(self, name: str, complete: bool) -> Spectrum:
        """The spectrum of a module's combined update."""
        if not self.plan.is_dense(name):
            layers = self._layers(name)
            if self.plan.mixture.is_in_core:
                return self._core(name, layers).spectrum(common_scale(name, layers))
            scale = common_scale(name, layers)
            return update_spectrum(name, stacked_layer(layers, scale, None), exact_sum(layers, scale))
        update = as_slabs(self._dense(name))
        if complete or self.plan.choice is None:
            return spectrum(update)
        return leading_spectrum(update, name, self.plan.choice, self.execution.generator(name))

    def _layers(self, name: str) -> Weighted:
        """The layers of a module, each with its weight."""
        plan = self.plan
        return [(plan.weights[i], check_finite(name, plan.adapters[i][name])) for i in plan.terms[name]]

    def _sum_record(self, name: str, rank: int | None) -> Record:
        """The record of a sum of products."""
        layers, generator = self._layers(name), self.execution.generator(name)
        dtype = self.plan.dtype.torch if self.plan.dtype else None
        scale = common_scale(name, layers)
        target, stacked = exact_sum(layers, scale), stacked_layer(layers, scale, dtype)
        known = product_spectrum(target)
        norm = update_norm(name, stacked, known.fro_norm)
        if rank == 0 or (norm == 0 and len(layers) > 1):
            result = zero_layer(stacked, 1, generator)
            if stacked.bias is None and stacked.magnitude is None:
                spare = result if _needs_spare(name, norm) else None
                return empty_record(_why_empty(norm, layers), norm, spare=spare)
        else:
            limit = min(rank or stacked.rank, stacked.rank)
            if limit < stacked.rank or (stacked.rank > known.max_rank and len(layers) > 1):
                limit = max(1, min(limit, int((known.singular_values > 0).sum())))
            result = at_rank(stacked, target, limit, dtype=dtype, generator=generator)
        check_range(name, result, 0.0 if rank == 0 else norm)
        unchanged = len(layers) == 1 and result.rank == stacked.rank and dtype in (None, result.lora_A.dtype)
        error = 0.0 if unchanged else measured_error(target, result, scaling=scale)
        least = min(error, known.error_bounds(result.rank)[0])
        return layer_record(result, error=error, error_lower_bound=least, fro_norm=norm)

    def _core_record(self, name: str, rank: int | None) -> Record:
        """The record of a combination in the updates' common subspaces."""
        layers, generator = self._layers(name), self.execution.generator(name)
        scale, dtype = common_scale(name, layers), self.plan.dtype.torch if self.plan.dtype else None
        stacked = stacked_layer(layers, scale, dtype)
        core = self._core(name, layers)
        norm = update_norm(name, stacked, float(core.S.norm()))
        count = min(self.plan.max_rank(name) if rank is None else rank, len(core.S))
        if not count:
            zero = zero_layer(stacked, 1, generator)
            if stacked.bias is None:
                return empty_record(_why_empty(norm, layers), norm, spare=zero if _needs_spare(name, norm) else None)
            return layer_record(zero, error=float(norm > 0), error_lower_bound=float(norm > 0), fro_norm=norm)
        layer = stacked.with_product(core.truncated(count), dtype=stacked.lora_A.dtype)
        layer = check_range(name, padded(layer, rank or count, generator), norm)
        error, least = self._core_error(name, layers, core, layer), core.lower_bound(count)
        return layer_record(layer, error=error, error_lower_bound=min(error, least), fro_norm=norm)

    def _core(self, name: str, layers: Weighted) -> CoreCombination:
        """The combination of a module's updates in their common subspaces, in units of its scale."""
        updates = [term(weight, layer, common_scale(name, layers)) for weight, layer in layers]
        return combined_core(self.plan.mixture, updates, rank=self.plan.max_rank(name))

    def _core_error(self, name: str, layers: Weighted, core: CoreCombination, result: AdapterLayer) -> float:
        """The error of a layer against a combination in common subspaces."""
        scale = common_scale(name, layers)
        if self.plan.mixture.method == "shared":
            return shared_error([term(weight, layer, scale) for weight, layer in layers], result.unscaled())
        return measured_error(core.truncated(len(core.S)), result, scaling=scale)

    def _dense_record(self, name: str, rank: int | None) -> Record:
        """The record of a combination that is formed as a matrix."""
        plan, layers = self.plan, self._layers(name)
        update, generator = self._dense(name), self.execution.generator(name)
        if rank == 0:
            norm = frobenius_norm(as_slabs(update))
            return empty_record(_why_empty(norm, layers), norm)
        choice = RankChoice(rank=min(rank or plan.max_rank(name), *update.shape))
        dtype = plan.dtype_of(name).torch
        result = factor(as_slabs(update), choice, generator, dtype=dtype)
        frame = unscaled_layer(stacked_layer(layers, common_scale(name, layers), dtype if plan.dtype else None))
        if not result.tensors:
            zero = zero_layer(frame, 1, generator)
            if frame.bias is None:
                spare = zero if _needs_spare(name, 0.0) else None
                return empty_record(_why_empty(0.0, layers), 0.0, spare=spare)
            return layer_record(zero, error=0.0, error_lower_bound=0.0, fro_norm=0.0)
        layer = frame.with_update(LowRank(result.tensors["left"], result.tensors["right"]), dtype=dtype)
        facts = result.facts
        least = min(facts["error"], facts["error_lower_bound"])
        layer = check_range(name, layer, facts["fro_norm"])
        return layer_record(layer, **(facts | {"error_lower_bound": least}))

    def measure(self, adapter: Adapter, layers: Sequence[LayerRecord]) -> list[LayerRecord]:
        """The records of layers with errors measured again, after the factors of the adapter were changed."""
        return [replace(record, error=self._error(record, adapter[record.name])) for record in layers]

    def _error(self, record: LayerRecord, result: AdapterLayer) -> float:
        if self.plan.is_dense(record.name):
            return error_of_product(self._dense(record.name), result.low_rank(), norm=record.fro_norm)
        layers = self._layers(record.name)
        if self.plan.mixture.is_in_core:
            return self._core_error(record.name, layers, self._core(record.name, layers), result)
        scale = common_scale(record.name, layers)
        return measured_error(exact_sum(layers, scale), result, scaling=scale)

    def _dense(self, name: str) -> Tensor:
        """The combination of one module's updates as a matrix, in the orientation of `low_rank`."""

        def updates() -> Iterator[tuple[float, Tensor, torch.Generator]]:
            for i in self.plan.terms[name]:
                layer = check_finite(name, self.plan.adapters[i][name])
                update = formed(layer) if layer.magnitude is None else self._dora_update(i, name)
                yield self.plan.weights[i], update, self.execution.generator(f"{name} of adapter {i}")

        update = combined_update(self.plan.mixture, updates)
        if count_non_finite([update]):
            scales = ", ".join(f"alpha {layer.alpha:.4g} at rank {layer.rank}" for layer in self.plan.layers(name))
            raise OptionError(too_large(f"{name} ({scales})", update.dtype))
        return update

    def _dora_update(self, i: int, name: str) -> Tensor:
        """W′ − W of a DoRA layer of the i-th adapter, subtracted in float64."""
        plan, (term, _, view) = self.plan, self.plan.placed[i, name]
        assert plan.base is not None
        assert view is not None
        weight = WeightMatrix(plan.base, view)

        def slabs() -> Iterator[Tensor]:
            return (slab.double() for slab in weight.slabs())

        ones = [1.0] * len(plan.adapters)
        update = update_of([term], plan.adapters, ones, dtype=torch.float64, view=view, slabs=slabs)
        start, blocks = 0, []
        for slab in slabs():
            blocks.append((update.change(slab, start) - slab).float())
            start += len(slab)
        matrix = torch.cat(blocks)
        return matrix.T if view.transposed else matrix


def combination_work(plan: CombinePlan, execution: Execution) -> LayerWork:
    """The work on the layers, which begins with spectra where ranks follow from them."""
    facts = {
        "adapters": [adapter.fingerprint() for adapter in plan.adapters],
        "weights": plan.weights,
        "mixture": asdict(plan.mixture),
        "choice": asdict(plan.choice) if plan.choice else None,
        "base": plan.base.fingerprint() if plan.base else None,
        "dtype": str(plan.dtype),
        "seed": execution.seed,
    }
    work, notes = Combining(plan, execution), plan.notes()
    for note in notes:
        execution.progress.note(note)

    def tasks(journal: Journal | None) -> LayerTasks:
        ranks = work.ranks(journal)
        return LayerTasks(
            replace(plan.frame, modules_to_save=saved_tensors(plan), added=added_tensors(plan)),
            work.tasks(plan.terms, lambda name: work.record(name, ranks.by_name.get(name))),
            plan.shapes,
            work.measure,
            skipped=plan.skipped,
            guarantee=ranks.guarantee,
            notes=tuple(notes),
        )

    return LayerWork(facts, tasks)


def _needs_spare(name: str, norm: float) -> bool:
    """Whether a zero update must be written because other experts of its parameter are."""
    return norm == 0 and parameter_of(name) != name


def _why_empty(norm: float, layers: Weighted) -> str:
    if norm:
        return "no rank within the budget"
    return "zero update" if len(layers) == 1 else "its updates cancel"
