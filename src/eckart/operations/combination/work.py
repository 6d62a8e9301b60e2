"""The passes over the modules of a combination: their ranks, and of each the layer that it comes to."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from eckart.adapter.adapter import AdapterLayer
from eckart.checkpoint import WeightMatrix
from eckart.engine import Execution, Record, Task, run_tasks
from eckart.linalg import LowRank, Spectrum, as_slabs, partial_spectrum, spectrum, spectrum_for
from eckart.linalg.rank import EXACT_SIDE
from eckart.operations.adapter_writer import record_of, record_of_none
from eckart.operations.combination.plan import CombinePlan, widest
from eckart.operations.extraction.pair import BUDGET_RANK
from eckart.operations.factors import FactorOptions, factor
from eckart.operations.rank_change import (
    alpha_for,
    at_rank,
    cast,
    check_finite,
    fresh,
    known_spectrum,
    least_error,
    measured_error,
)
from eckart.operations.rank_choice import RankChoice
from eckart.operations.ranks import choose, parameter_of, rule_of
from eckart.operations.weight_update import update_of

T = TypeVar("T")
Weighted = Sequence[tuple[float, AdapterLayer]]


@dataclass(frozen=True)
class Combining:
    """A plan at work.

    Attributes:
        plan: what is combined.
        execution: workers, progress, seed.
    """

    plan: CombinePlan
    execution: Execution

    def ranks(self) -> tuple[dict[str, int], str | None]:
        """The rank of each layer, where a choice names one, and what is proved of a shared budget."""
        choice = self.plan.choice
        if choice is None or choice.rank is not None:
            return (dict.fromkeys(self.plan.terms, choice.rank) if choice and choice.rank else {}), None
        stage = run_tasks(self.tasks(self._spectrum), stage="Reading spectra", execution=self.execution)
        found = {task.name: known for task, known in stage}
        spectra = {name: found[name] for name in self.plan.terms}
        in_bytes = choice.budget is not None and choice.budget.in_bytes
        return choose(spectra, choice, self.plan.costs(in_bytes=in_bytes), self.plan.needed())

    def tasks(self, call: Callable[[str], T]) -> list[Task[T]]:
        """Work on every module, with what it reads and holds."""

        def task(name: str) -> Task[T]:
            layers = [self.plan.outlines[i][name] for i in self.plan.terms[name]]
            rows, columns = self.plan.shapes[name]
            rank = sum(layer.rank for layer in layers)
            whole = self.plan.is_dense(name) or rank > min(rows, columns)
            held = 6 * 4 * rows * columns if whole else 8 * 8 * rank * (rows + columns)
            nbytes = sum(tensor.nbytes for layer in layers for tensor in layer.tensors().values())
            return Task(name, nbytes, held, lambda: call(name))

        return [task(name) for name in self.plan.terms]

    def record(self, name: str, rank: int | None) -> Record:
        """The record of one layer.

        Args:
            name: of the module.
            rank: what was chosen; None keeps that of the sum, or of the inputs where the update is formed whole.
        """
        return self._of_dense(name, rank) if self.plan.is_dense(name) else self._of_sum(name, rank)

    def _spectrum(self, name: str) -> Spectrum:
        """The spectrum of a module's combination, as far as the choice needs it."""
        if not self.plan.is_dense(name):
            return known_spectrum(_sum(self._layers(name)))
        update, generator, choice = self._dense(name), self.execution.generator(name), self.plan.choice
        if choice is not None and choice.budget is None:
            return spectrum_for(as_slabs(update), rule_of(choice), generator=generator)
        if min(update.shape) <= EXACT_SIDE:
            return spectrum(update)
        return partial_spectrum(update, rank=BUDGET_RANK, generator=generator)

    def _layers(self, name: str) -> Weighted:
        """The layers of a module, each with its weight."""
        plan = self.plan
        return [(plan.weights[i], check_finite(name, plan.adapters[i][name])) for i in plan.terms[name]]

    def _of_sum(self, name: str, rank: int | None) -> Record:
        """The record of a sum of products."""
        layers, generator = self._layers(name), self.execution.generator(name)
        target, stacked = _sum(layers), _stacked(layers, self.plan.dtype)
        known = known_spectrum(target)
        norm = known.fro_norm
        if rank == 0 or (norm == 0 and len(layers) > 1):
            made = fresh(stacked, 1, generator)
            if stacked.bias is None and stacked.magnitude is None:
                return record_of_none(_why_none(norm, layers), norm, made if _is_spare(name, norm) else None)
        else:
            limit = min(rank or stacked.rank, stacked.rank)
            if limit < stacked.rank or (stacked.rank > known.max_rank and len(layers) > 1):
                limit = max(1, min(limit, int((known.singular_values > 0).sum())))
            made = at_rank(stacked, target, limit, dtype=self.plan.dtype, generator=generator)
        check_finite(name, made, written=True)
        unchanged = len(layers) == 1 and made.rank == stacked.rank and self.plan.dtype in (None, made.lora_A.dtype)
        error = 0.0 if unchanged else measured_error(target, made, norm)
        least = min(error, least_error(known, made.rank))
        return record_of(made, error=error, error_lower_bound=least, fro_norm=norm)

    def _of_dense(self, name: str, rank: int | None) -> Record:
        """The record of a combination that was formed whole."""
        plan, layers = self.plan, self._layers(name)
        update, generator = self._dense(name), self.execution.generator(name)
        if rank == 0:
            norm = float(torch.linalg.vector_norm(update, dtype=torch.float64))
            return record_of_none(_why_none(norm, layers), norm)
        limit = min(rank or plan.max_rank(name), *update.shape)
        options = FactorOptions(plan.dtype_of(name))
        made = factor(as_slabs(update), RankChoice(rank=limit), options, generator)
        shell = _unscaled(_stacked(layers, plan.dtype))
        if not made.tensors:
            zero = fresh(shell, 1, generator)
            if shell.bias is None:
                return record_of_none(_why_none(0.0, layers), 0.0, zero if _is_spare(name, 0.0) else None)
            return record_of(zero, error=0.0, error_lower_bound=0.0, fro_norm=0.0)
        layer = shell.with_update(LowRank(made.tensors["left"], made.tensors["right"]), dtype=options.dtype)
        check_finite(name, layer, written=True)
        error, least = made.facts["error"], made.facts["error_lower_bound"]
        return record_of(layer, error=error, error_lower_bound=min(error, least), fro_norm=made.facts["fro_norm"])

    def _dense(self, name: str) -> Tensor:
        """The combination of one module's updates, formed whole, as `low_rank` lays it."""

        def updates() -> Iterator[tuple[float, Tensor, torch.Generator]]:
            for i in self.plan.terms[name]:
                layer = check_finite(name, self.plan.adapters[i][name])
                update = _formed(layer) if layer.magnitude is None else self._of_dora(i, name)
                yield self.plan.weights[i], update, self.execution.generator(f"{name} of adapter {i}")

        return self.plan.mixture.of(updates)

    def _of_dora(self, i: int, name: str) -> Tensor:
        """W′ − W of a DoRA layer of the i-th adapter, subtracted in float64."""
        plan, placed = self.plan, self.plan.placed[i, name]
        assert plan.base is not None
        assert placed.view is not None
        weight = WeightMatrix(plan.base, placed.view)

        def slabs() -> Iterator[Tensor]:
            return (slab.double() for slab in weight.slabs())

        ones = [1.0] * len(plan.adapters)
        update = update_of([placed.term], plan.adapters, ones, dtype=torch.float64, view=placed.view, slabs=slabs)
        start, parts = 0, []
        for slab in slabs():
            parts.append((update.change(slab, start) - slab).float())
            start += len(slab)
        whole = torch.cat(parts)
        return whole.T if placed.view.transposed else whole


def _sum(layers: Weighted) -> LowRank:
    """The exact sum of updates in float64."""
    first, *rest = (layer.low_rank() * weight for weight, layer in layers)
    return sum(rest, first)


def _stacked(layers: Weighted, dtype: torch.dtype | None) -> AdapterLayer:
    """The sum as one layer of stacked factors; a single layer of weight 1 is itself.

    The largest |weight·scaling| becomes its scaling, so that factors of equal scale stay bit for bit as they are.
    """
    first = layers[0][1]
    if len(layers) == 1 and layers[0][0] == 1:
        return cast(first, dtype)
    scale = max(abs(weight * layer.scaling) for weight, layer in layers) or 1.0
    shares = [(weight * layer.scaling / scale, layer) for weight, layer in layers]
    dtype = dtype or widest([factor for _, layer in layers for factor in (layer.lora_A, layer.lora_B)])
    A = torch.cat([layer.lora_A.to(dtype) for _, layer in shares])
    B = torch.cat([(layer.lora_B.double() * share).to(dtype) for share, layer in shares], dim=1)
    biases = [(share, layer.bias) for share, layer in shares if layer.bias is not None]
    bias = None
    if biases:
        total = torch.stack([bias.double() * share for share, bias in biases]).sum(0)
        bias = total.to(widest([bias for _, bias in biases]))
    return replace(first, lora_A=A, lora_B=B, bias=bias, alpha=alpha_for(scale, len(A), rslora=first.rslora))


def _unscaled(layer: AdapterLayer) -> AdapterLayer:
    """The place and bias of a layer, in one of scaling 1 and without a magnitude."""
    bias = None if layer.bias is None else (layer.bias.double() * layer.scaling).to(layer.bias.dtype)
    return replace(layer, bias=bias, magnitude=None, rslora=False, alpha=float(layer.rank))


def _formed(layer: AdapterLayer) -> Tensor:
    """A plain layer's update in float32, or float64 where it is stored so."""
    product = layer.low_rank()
    dtype = torch.promote_types(layer.lora_A.dtype, torch.float32)
    return LowRank(product.lora_B.to(dtype), product.lora_A.to(dtype)).dense()


def _is_spare(name: str, norm: float) -> bool:
    """Whether a zero update has to be written beside those of other experts."""
    return norm == 0 and parameter_of(name) != name


def _why_none(norm: float, layers: Weighted) -> str:
    if norm:
        return "the budget left it no rank"
    return "its update is zero" if len(layers) == 1 else "its updates cancel"
