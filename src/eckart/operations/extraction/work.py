"""The tensor work of an extraction: compare the checkpoints, choose ranks, factor each difference."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from eckart.adapter.adapter import Adapter
from eckart.checkpoint import DifferenceMatrix, MatrixView, WeightMatrix
from eckart.checkpoint.compare import changed
from eckart.engine import Execution, Journal, Record, Task, run_tasks
from eckart.errors import MismatchError
from eckart.formats.peft_tokens import rows_of
from eckart.linalg import Spectrum, spectrum
from eckart.linalg.block_sizes import RESIDENT_BYTES, SLAB_BYTES
from eckart.linalg.finite import require_finite
from eckart.operations.adapter_result import LayerRecord
from eckart.operations.adapter_writer import LayerTasks, LayerWork, empty_record, layer_record
from eckart.operations.costs import Costs
from eckart.operations.extraction.plan import ExtractPlan, is_quantized, matrices_by_name
from eckart.operations.extraction.scope import BIAS, NORM, NOT_TARGETED
from eckart.operations.factors import error_of, factor, layer_of
from eckart.operations.rank_change import check_range, zero_layer
from eckart.operations.rank_choice import RankChoice
from eckart.operations.ranks import Ranks, leading_spectrum, ranks_from_spectra
from eckart.result import Skipped

T = TypeVar("T")


@dataclass(frozen=True)
class Extraction:
    """A plan being executed.

    Attributes:
        plan: the plan.
        execution: how the work is run.
        saved: changed tensors to save in full, by name.
        biases: change of the bias of each factored module, by module; none if not every one has a change, and the
            changed biases are then among those saved in full.
        skipped: every other tensor that is not factored, with the reason.
    """

    plan: ExtractPlan
    execution: Execution
    saved: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker on another machine needs: what is saved in full is not its business."""
        return self.__dict__ | {"saved": {}}

    @cached_property
    def views(self) -> dict[str, MatrixView]:
        """The matrices to factor, by layer."""
        return matrices_by_name(self.plan)

    def checked_costs(self) -> Costs | None:
        """The costs of a rank of each layer; None if the rank of each matrix is chosen when it is factored.

        Raises:
            OptionError: the budget is too small.
        """
        budget = self.plan.choice.budget
        if budget is None:
            return None
        biases = [f"{module}.bias" for module in self.biases]
        costs = self.plan.costs(self.saved, biases, in_bytes=budget.in_bytes)
        costs.check(budget, self.needed())
        return costs

    def needed(self) -> list[str]:
        """Layers that get a rank in any case, for their bias."""
        return [name for name, view in self.views.items() if view.module in self.biases]

    def ranks(self, costs: Costs, journal: Journal | None) -> Ranks:
        """Ranks within the budget."""
        return ranks_from_spectra(
            self.spectrum_tasks,
            self._spectrum,
            self.plan.choice,
            costs=costs,
            needed=self.needed(),
            execution=self.execution,
            journal=journal,
        )

    def spectrum_tasks(self, names: Iterable[str], call: Callable[[str], T]) -> list[Task[T]]:
        """Tasks that may decompose each matrix completely."""
        return [self._task(self.views[name], lambda name=name: call(name), complete=True) for name in names]

    def tasks(self, ranks: Ranks | None) -> list[Task[Record]]:
        """One task per matrix, which factors its difference."""
        complete = ranks is None and self.plan.choice.rank is None
        made = []
        for name, view in self.views.items():
            if ranks is not None and ranks.by_name[name] == 0:
                reason = "no rank within the budget" if ranks.norms[name] else "unchanged"
                record = empty_record(reason, ranks.norms[name], skipped_name=view.tensor)
                made.append(Task(name, 0, 0, lambda record=record: record))
            else:
                choice = RankChoice(rank=ranks.by_name[name]) if ranks else self.plan.choice
                call = lambda view=view, choice=choice: self._record(view, choice)  # noqa: E731
                made.append(self._task(view, call, complete=complete))
        return made

    def measure(self, adapter: Adapter, layers: Sequence[LayerRecord]) -> list[LayerRecord]:
        """The records of layers with errors measured again, after the factors of the adapter were changed."""
        norms = {layer.name: layer.fro_norm for layer in layers if layer.name in adapter and layer.fro_norm}

        def error(view: MatrixView) -> float:
            return error_of(self._difference(view), adapter[view.name], view, norm=norms[view.name])

        tasks = [self._task(self.views[name], partial(error, self.views[name]), complete=False) for name in norms]
        errors = {
            task.name: error for task, error in run_tasks(tasks, stage="Measuring errors", execution=self.execution)
        }
        return [
            layer.at_rank(adapter[layer.name].rank, errors[layer.name])
            if layer.name in errors
            else layer
            if layer.name in adapter
            else layer.at_rank(0, 1.0)
            for layer in layers
        ]

    def _record(self, view: MatrixView, choice: RankChoice) -> Record:
        plan, generator = self.plan, self.execution.generator(view.name)
        bias, dtype = self.biases.get(view.module), plan.dtype.torch
        result = factor(
            self._difference(view), choice, generator, dtype=dtype, balanced=plan.balanced, stored=self._stored(view)
        )
        if result.facts["fro_norm"] and not result.tensors and (bias is not None or view.kind == "expert"):
            # Written in any case: with a bias, or next to other experts of its parameter.
            choice = RankChoice(rank=1)
            result = factor(self._difference(view), choice, generator, dtype=dtype, balanced=plan.balanced)
        if result.tensors:
            layer = layer_of(view, result.tensors["left"], result.tensors["right"], bias=bias)
            return layer_record(check_range(view.name, layer, result.facts["fro_norm"]), **result.facts)
        norm = result.facts["fro_norm"]
        reason = f"nothing above the rounding of {self.plan.tuned.tensors[view.tensor].dtype}" if norm else "unchanged"
        if bias is None and view.kind != "expert":
            return empty_record(reason, norm, skipped_name=view.tensor)
        rows, columns = view.stored_shape
        zero = layer_of(view, torch.zeros(rows, 1, dtype=dtype), torch.zeros(1, columns, dtype=dtype), bias=bias)
        zero = zero_layer(zero, 1, generator)
        if view.kind == "expert":  # PEFT stores the experts of a parameter together
            return empty_record("unchanged", 0.0, spare=zero, skipped_name=view.name)
        return layer_record(zero, error=0.0, error_lower_bound=0.0, fro_norm=0.0)

    def _spectrum(self, name: str, complete: bool) -> Spectrum:
        matrix = self._difference(self.views[name])
        if complete:
            return spectrum(matrix)
        return leading_spectrum(matrix, name, self.plan.choice, self.execution.generator(name))

    def _difference(self, view: MatrixView) -> DifferenceMatrix:
        return DifferenceMatrix(self.plan.tuned, self.plan.base, view, self.execution.torch_device())

    def _stored(self, view: MatrixView) -> WeightMatrix | None:
        """The weight whose rounding is in the difference; None for codes, whose rounding is not that of a float."""
        if is_quantized(self.plan, view):
            return None
        return WeightMatrix(self.plan.tuned, view, self.execution.torch_device())

    def _task(self, view: MatrixView, call: Callable[[], T], *, complete: bool) -> Task[T]:
        """A task for one matrix, with the bytes that it reads and occupies."""
        base, tuned = self.plan.base, self.plan.tuned
        rows, columns = view.stored_shape
        stored = (base.tensors[base.tied.get(view.tensor, view.tensor)], tuned.tensors[view.tensor])
        nbytes = rows * columns * sum(info.dtype.itemsize for info in stored)
        memory = min(4 * rows * columns, RESIDENT_BYTES) + 4 * SLAB_BYTES + 8 * 160 * (rows + columns)
        if complete:
            memory += 4 * 8 * min(rows, columns) ** 2
        return Task(view.name, nbytes, memory, call)


def extraction_work(plan: ExtractPlan, execution: Execution) -> LayerWork:
    """The work on the matrices; reads the tensors that are not factored.

    Raises:
        MismatchError: no targeted matrix differs.
        OptionError: the budget is too small.
        NotFiniteError: a tensor contains NaN or Inf.
    """
    check_difference(plan)
    work = read_unfactored(plan, execution)
    costs, planned = work.checked_costs(), plan.planned_ranks()
    notes = [*_skipped_notes(work.skipped), *plan.vocabulary_notes(), *(plan.notes(planned) if planned else ())]
    for note in notes:
        execution.progress.note(note)
    by_budget = plan.choice.budget is not None
    facts = {
        "inputs": [plan.base.fingerprint(), plan.tuned.fingerprint()],
        "choice": asdict(plan.choice),
        "sharing": [list(work.views), list(work.saved)] if by_budget else [],
        "biases": list(work.biases),
        "dtype": str(plan.dtype),
        "balanced": plan.balanced,
        "seed": execution.seed,
    }
    saved = {name: tensor for stored, tensor in work.saved.items() for name in plan.names_of(stored)}
    saved |= {plan.parts.naming(bias): plan.stored.read(stored) for bias, stored in _biases_beside(plan, work.saved)}
    for name, tokens in plan.parts.new_tokens.items():
        saved[rows_of(plan.parts.naming(name))] = rows = plan.stored.rows(name, tokens.start, tokens.stop)
        require_finite(rows, name)
    frame = replace(
        plan.frame,
        format=plan.format_of_base,
        modules_to_save=saved,
        config=plan.frame.config | _bias_config(plan, work.saved),
    )

    written = plan.written
    named = partial(written.named, base=plan.base) if written else None

    def tasks(journal: Journal | None) -> LayerTasks:
        ranks = None if costs is None else work.ranks(costs, journal)
        late = plan.notes(ranks.by_name) if ranks and not planned else []
        for note in late:
            execution.progress.note(note)
        return LayerTasks(
            frame,
            work.tasks(ranks),
            {name: view.shape for name, view in work.views.items()},
            work.measure,
            skipped=work.skipped,
            guarantee=ranks.guarantee if ranks else None,
            notes=(*notes, *late),
            copies={name: view.tied_modules for name, view in work.views.items()},
            tokenizer=plan.stored.folder,
            named=named,
        )

    return LayerWork(facts, tasks)


def _biases_beside(plan: ExtractPlan, saved: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Biases of output layers whose weight is saved because it is an embedding's: PEFT looks for them too."""
    model = plan.stored
    for name in (name for name, stored in model.tied.items() if stored in saved and name.endswith(".weight")):
        bias = name.removesuffix("weight") + "bias"
        if (stored := model.tied.get(bias, bias)) in model.tensors:
            yield bias, stored


def _bias_config(plan: ExtractPlan, saved: Mapping[str, Tensor]) -> dict[str, str]:
    """The field of the PEFT config that says that biases of adapted modules are saved in full, if there are any."""
    return {"bias": "lora_only"} if any(name in saved for name in plan.parts.biases) else {}


def check_difference(plan: ExtractPlan) -> None:
    """Refuse checkpoints whose targeted matrices are all equal; reads until the first difference.

    Raises:
        MismatchError: no targeted matrix differs.
    """
    views = plan.parts.matrices
    if not any(changed(plan.base, plan.tuned, tensor) for tensor in dict.fromkeys(view.tensor for view in views)):
        msg = (
            f"{plan.tuned.source} and {plan.base.source} are identical in all {len(views)} targeted matrices: there "
            "is nothing to extract; check that `tuned` is the fine-tuned model, or choose other matrices with `target`"
        )
        raise MismatchError(msg)


def read_unfactored(plan: ExtractPlan, execution: Execution) -> Extraction:
    """Begin an extraction: read the tensors to save next to the factors, and find out which of the others changed.

    Raises:
        NotFiniteError: a tensor to save contains NaN or Inf.
    """
    base, tuned, stored, parts = plan.base, plan.tuned, plan.stored, plan.parts
    result = Extraction(plan, execution)
    # PEFT looks for every tensor of a module that it replaces.
    replaced = {name.rpartition(".")[0] for name in parts.saved if changed(base, stored, name)}
    for name in parts.saved:
        if name.rpartition(".")[0] in replaced:
            result.saved[name] = tensor = stored.read(name)
            require_finite(tensor, name)
        else:
            result.skipped.append(Skipped(name, "unchanged"))
    for name in parts.biases:
        change = tuned.read(name).to(torch.float32) - base.read(name).to(torch.float32)
        if change.any():
            require_finite(change, name)
            result.biases[name.rpartition(".")[0]] = change
        else:
            result.skipped.append(Skipped(name, "unchanged"))
    if result.biases.keys() != {view.module for view in parts.matrices}:
        # PEFT adds a bias to every layer or to none, but it can replace single ones of the base (`bias="lora_only"`).
        result.saved.update((f"{module}.bias", tuned.read(f"{module}.bias")) for module in result.biases)
        result.biases.clear()
    for item in parts.skipped:
        result.skipped.append(item if changed(base, tuned, item.name) else Skipped(item.name, "unchanged"))
    return result


def _skipped_notes(skipped: Sequence[Skipped]) -> list[str]:
    """How to include changed tensors that were skipped, once per kind."""
    counts = {reason: sum(item.reason == reason for item in skipped) for reason in (NORM, BIAS, NOT_TARGETED)}
    remedies = {NORM: "`modules_to_save=norm`", BIAS: "`modules_to_save=bias`", NOT_TARGETED: "`target`"}
    return [
        f"{count} changed tensor{'s' if count > 1 else ''} skipped ({reason}): {remedies[reason]} includes them"
        for reason, count in counts.items()
        if count
    ]
