"""The passes over a base and its fine-tune: do they differ, the factors of each matrix, and what is kept whole."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from eckart.adapter.adapter import Adapter
from eckart.checkpoint import Checkpoint, DifferenceMatrix, MatrixView
from eckart.checkpoint.compare import changed
from eckart.engine import Execution, Journal, Record, Task, run_resumable, run_tasks
from eckart.engine.fingerprint import fingerprint
from eckart.errors import MismatchError, NotFiniteError, OptionError
from eckart.linalg import Allocation, Spectrum, allocate, partial_spectrum, spectrum
from eckart.linalg.krylov import RESIDENT_BYTES
from eckart.linalg.rank import EXACT_SIDE
from eckart.linalg.slabs import SLAB_BYTES
from eckart.operations.adapter_result import LayerRecord
from eckart.operations.extraction.scope import Plan
from eckart.operations.factors import FactorOptions, error_of, factor
from eckart.operations.rank_choice import HEADER_BYTES, Budget, RankChoice
from eckart.result import Skipped

T = TypeVar("T")
BUDGET_RANK = 256  # values of a large matrix that a shared budget considers before it asks for all of them


@dataclass(frozen=True)
class Rest:
    """What goes beside the factors.

    Attributes:
        whole: changed tensors to keep whole, by name.
        biases: what the bias of each factored module gained.
        skipped: every other tensor, and why.
    """

    whole: dict[str, Tensor]
    biases: dict[str, Tensor]
    skipped: list[Skipped]


@dataclass(frozen=True)
class Pair:
    """A base, its fine-tune, and how passes over them are run."""

    base: Checkpoint
    tuned: Checkpoint
    execution: Execution

    def check_difference(self, views: Sequence[MatrixView]) -> None:
        """Refuse checkpoints that are equal wherever it matters; reads until the first difference.

        Raises:
            MismatchError: no targeted matrix differs.
        """
        if not any(changed(self.base, self.tuned, tensor) for tensor in dict.fromkeys(view.tensor for view in views)):
            msg = (
                f"{self.tuned.source} and {self.base.source} are identical in all {len(views)} targeted matrices: "
                "there is nothing to extract; check that TUNED is the fine-tune, or name other matrices with --target"
            )
            raise MismatchError(msg)

    def check_budget(self, views: Sequence[MatrixView], choice: RankChoice, options: FactorOptions) -> None:
        """Refuse a budget that not even one rank of one matrix fits in.

        Raises:
            OptionError: the message says what one rank takes.
        """
        least = min(sum(view.stored_shape) for view in views)
        if choice.budget is not None and (params := _params(choice.budget, options.dtype, len(views))) < least:
            msg = (
                f"--budget: {params:,} parameters are left for factors, and one rank of the smallest of "
                f"{len(views)} matrices takes {least:,}: raise the budget, or target fewer matrices with --target"
            )
            raise OptionError(msg)

    def fingerprint(self, views: Sequence[MatrixView], choice: RankChoice, options: FactorOptions) -> str:
        """A digest of everything that a matrix's factors depend on: where a budget is shared, on all matrices."""
        facts = {
            "inputs": [self.base.fingerprint(), self.tuned.fingerprint()],
            "choice": asdict(choice),
            "sharing": [view.name for view in views] if choice.budget else [],
            "dtype": str(options.dtype),
            "balanced": options.balanced,
            "seed": self.execution.seed,
        }
        return fingerprint(facts)

    def factor(
        self, views: Sequence[MatrixView], choice: RankChoice, options: FactorOptions, journal: Journal | None
    ) -> tuple[dict[str, Record], str | None]:
        """Factors of every matrix by name, and what is proved of a shared budget."""
        if choice.budget is None:
            return self._factor_each(dict.fromkeys(views, choice), options, journal), None
        allocation, zero = self._share(views, _params(choice.budget, options.dtype, len(views)))
        choices = {view: RankChoice(rank=rank) for view in views if (rank := allocation.ranks[view.name])}
        records = self._factor_each(choices, options, journal)
        none = {view.name: Record({"fro_norm": 0.0 if view.name in zero else 1.0}) for view in views}
        return none | records, allocation.guarantee

    def measured_again(
        self, views: Sequence[MatrixView], layers: Sequence[LayerRecord], adapter: Adapter
    ) -> list[LayerRecord]:
        """The records of layers with the errors of an adapter whose factors were changed since."""
        known = {layer.name: layer for layer in layers}
        tasks = [
            self._task(view, lambda v=view: error_of(self._difference(v), adapter[v.module], v), whole=False)
            for view in views
            if view.name in known
        ]
        errors = {
            task.name: error for task, error in run_tasks(tasks, stage="Measuring errors", execution=self.execution)
        }
        return [replace(layer, error=errors[name] / layer.fro_norm) for name, layer in known.items()]

    def read_rest(self, placed: Plan) -> Rest:
        """Read what is kept beside the factors; tell what changed of everything else.

        Raises:
            NotFiniteError: a tensor to keep holds NaN or Inf.
        """
        rest = Rest({}, {}, [])
        for name in placed.whole:
            if changed(self.base, self.tuned, name):
                rest.whole[name] = _finite(name, self.tuned.read(name))
            else:
                rest.skipped.append(Skipped(name, "unchanged"))
        for name in placed.biases:
            gained = self.tuned.read(name).to(torch.float32) - self.base.read(name).to(torch.float32)
            if gained.any():
                rest.biases[name.rpartition(".")[0]] = _finite(name, gained)
        for item in placed.rest:
            differs = item.name not in placed.whole and changed(self.base, self.tuned, item.name)
            rest.skipped.append(item if differs else Skipped(item.name, "unchanged"))
        return rest

    def _difference(self, view: MatrixView) -> DifferenceMatrix:
        return DifferenceMatrix(self.tuned, self.base, view, self.execution.torch_device())

    def _factor_each(
        self, choices: dict[MatrixView, RankChoice], options: FactorOptions, journal: Journal | None
    ) -> dict[str, Record]:
        """Factors of each matrix: those kept from an earlier run, and the others by running."""

        def work(view: MatrixView) -> Record:
            return factor(self._difference(view), choices[view], options, self.execution.generator(view.name))

        tasks = [self._task(v, lambda v=v: work(v), whole=choice.rank is None) for v, choice in choices.items()]
        return run_resumable(tasks, stage="Extracting", execution=self.execution, journal=journal)

    def _share(self, views: Sequence[MatrixView], params: int) -> tuple[Allocation, set[str]]:
        """Ranks within a budget for all matrices together, from spectra computed as far as the choice needs."""

        def leading(view: MatrixView) -> Spectrum:
            matrix = self._difference(view)
            if min(view.stored_shape) <= EXACT_SIDE:
                return spectrum(matrix)
            return partial_spectrum(matrix, rank=BUDGET_RANK, generator=self.execution.generator(view.name))

        tasks = [self._task(view, lambda view=view: leading(view), whole=True) for view in views]
        spectra = {
            task.name: found for task, found in run_tasks(tasks, stage="Reading spectra", execution=self.execution)
        }
        # An output layer tied to an embedding gets a copy of its factors.
        costs = {view.name: sum(view.stored_shape) * (1 + len(view.tied_modules)) for view in views}
        allocation = allocate(spectra, budget_params=params, rank_params=costs)
        if not allocation.certain:
            partial = [view for view in views if spectra[view.name].tail is not None]
            tasks = [self._task(v, lambda v=v: spectrum(self._difference(v)), whole=True) for v in partial]
            spectra |= {
                task.name: found for task, found in run_tasks(tasks, stage="Whole spectra", execution=self.execution)
            }
            allocation = allocate(spectra, budget_params=params, rank_params=costs)
        return allocation, {name for name, found in spectra.items() if found.fro_norm == 0}

    def _task(self, view: MatrixView, call: Callable[[], T], *, whole: bool) -> Task[T]:
        """A task for one matrix, with what it will read and hold."""
        rows, columns = view.stored_shape
        stored = (self.base.tensors[self.base.tied.get(view.tensor, view.tensor)], self.tuned.tensors[view.tensor])
        nbytes = rows * columns * sum(info.dtype.itemsize for info in stored)
        held = min(4 * rows * columns, RESIDENT_BYTES) + 4 * SLAB_BYTES + 8 * 160 * (rows + columns)
        if whole:
            held += 4 * 8 * min(rows, columns) ** 2
        return Task(view.name, nbytes, held, call)


def _params(budget: Budget, dtype: torch.dtype, layers: int) -> int:
    """Parameters of factors that fit a budget."""
    if not budget.in_bytes:
        return budget.amount
    return max(0, budget.amount - HEADER_BYTES * layers) // dtype.itemsize


def _finite(name: str, tensor: Tensor) -> Tensor:
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        msg = f"{name} holds {bad:,} values that are NaN or Inf"
        raise NotFiniteError(msg)
    return tensor
