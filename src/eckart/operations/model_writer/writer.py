"""Writes a planned model folder tensor by tensor; an interrupted run resumes.

Files are in `OUT.partial/model` until all tensors are written. Each finished tensor is recorded in the journal.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eckart.checkpoint import InputFiles, MatrixView, check_output, copy_companions
from eckart.checkpoint.companions import has_companions, tokenizer_files
from eckart.checkpoint.encodings.nf4_scheme import Nf4Scheme
from eckart.checkpoint.manifest import MANIFEST, foreign_files, write_manifest
from eckart.checkpoint.matrices import rows_of
from eckart.checkpoint.output import publish, refusing_full_disk
from eckart.checkpoint.pipeline import PipelineCheckpoint, other_files
from eckart.checkpoint.remote.table import download
from eckart.checkpoint.writer import TensorFiles, open_files, write_index
from eckart.engine import Execution, Journal, Record, Task, open_journal, run_resumable
from eckart.errors import NotFiniteError, OutputError
from eckart.linalg.block_sizes import NORM_CHUNK, SLAB_BYTES
from eckart.linalg.finite import count_non_finite, is_held, too_large
from eckart.operations.model_writer.calibrated import CollectedWeight, QuantizedWeight
from eckart.operations.model_writer.card import write_model_card
from eckart.operations.model_writer.plan import ModelPlan, OutputTensor, partial_folder
from eckart.operations.model_writer.requantize import Requantized
from eckart.operations.model_writer.rounding_cost import RoundingCost
from eckart.operations.weight_update import Update, update_of

if TYPE_CHECKING:
    from eckart.checkpoint.encodings.encoded import Scheme

LEAST_ROWS = 64  # of a block: with fewer, a product with a wide factor spends its time reading the factor
MEASURED = 8  # rounding is measured on one block of this many
_WRITTEN = "written"  # in a record: the digest of the ends of what was written
_BOOT = "boot"  # in a record: since which start of the machine; empty if it is on the disk in any case
_STAGES = {"merge": "Merging", "unmerge": "Unmerging", "quantize": "Quantizing"}


def in_cache(rows: Tensor) -> tuple[Tensor, ...]:
    """Rows in blocks that stay in the processor's cache from one step of a computation to the next."""
    return rows.split(max(LEAST_ROWS, NORM_CHUNK // max(rows.shape[1], 1)))


def stored_rows_of(tensor: OutputTensor, view: MatrixView) -> Iterator[Tensor]:
    """Rows of one matrix of a tensor as the base stores them, or as its original does."""
    return rows_of(tensor.original or tensor.base, view)


def update_for(plan: ModelPlan, tensor: OutputTensor, view: MatrixView) -> Update:
    """The update of one matrix, with the adapters' tensors in memory."""
    dtype = torch.float64 if "float64" in (tensor.info.dtype.name, tensor.dtype.name) else torch.float32

    def upcast() -> Iterator[Tensor]:
        return (block.to(dtype) for rows in stored_rows_of(tensor, view) for block in in_cache(rows))

    return update_of(tensor.terms[view.name], plan.adapters, plan.weights, dtype=dtype, view=view, slabs=upcast)


class ModelWriter:
    """Writes the folder of a `ModelPlan`."""

    def __init__(self, plan: ModelPlan) -> None:
        self.plan = plan
        self.inputs = InputFiles(plan.inputs)

    def write(
        self,
        output: Path,
        execution: Execution,
        *,
        force: bool = False,
        check: Callable[[Path], None] = lambda folder: None,
    ) -> dict[str, dict[str, Any]]:
        """Write the folder, completely or not at all.

        Args:
            output: the folder.
            execution: workers, memory, progress, resume.
            force: replace an existing output.
            check: called with the complete folder before it gets its final name; after an error it does not get it.

        Returns:
            measurements of each tensor, by its name.

        Raises:
            OutputError: it exists, or cannot be written.
            SourceError: an input changed during the run.
            NotFiniteError: a changed matrix contains NaN or Inf, or a value that its dtype cannot represent.
        """
        plan, folder = self.plan, partial_folder(output)
        remedy = "free some space and run the same command again: it resumes where it stopped"
        with (
            open_journal(output, plan.fingerprint(), execution) as journal,
            refusing_full_disk(output, remedy),
        ):
            assert journal is not None
            check_output(output, force=force)  # another process may have written it meanwhile
            records = self._fill(folder, journal, execution)
            write_index(folder, plan.shards)
            if plan.as_file:
                check(folder / plan.as_file)
                self.inputs.check_unchanged()
                publish(folder / plan.as_file, output, force=force)
            else:
                self._add_companions(folder)
                check(folder)
                write_model_card(folder, plan, [record.facts for record in records.values()])
                self.inputs.check_unchanged()
                publish(folder, output, force=force)
        return {name: record.facts for name, record in records.items()}

    def _add_companions(self, folder: Path) -> None:
        """Copy what belongs to the base beside its weights, and write the config."""
        plan = self.plan
        if isinstance(plan.base, PipelineCheckpoint) and plan.base.folder:
            files = other_files(plan.base.folder)
            download(plan.base.folder / file for file in files)
            for file in files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(plan.base.folder / file, folder / file)
            return
        if plan.base.folder and has_companions(plan.base):
            copy_companions(plan.base.folder, folder, omitted=plan.omitted)
        for file in tokenizer_files(plan.tokenizer) if plan.tokenizer else ():
            shutil.copyfile(file, folder / file.name)
        if plan.config:
            (folder / "config.json").write_text(json.dumps(plan.config, indent=2, default=str) + "\n")

    def _fill(self, folder: Path, journal: Journal, execution: Execution) -> dict[str, Record]:
        folder.mkdir(exist_ok=True)
        if foreign := foreign_files(folder):
            msg = f"{folder}: it contains files that eckart did not write; move them away"
            raise OutputError.listing(msg, foreign)
        for file in folder.rglob("*"):
            name = file.relative_to(folder).as_posix()
            if file.is_file() and name != MANIFEST and (journal.restarted or name not in self.plan.shards):
                file.unlink()
        write_manifest(folder, self.plan.file_names)
        with open_files(folder, self.plan.shards, self.plan.metadata) as files:
            if files.is_new:
                journal.clear()
            tasks = [self._task(tensor, files, execution) for tensor in self.plan.tensors]
            parts = {tensor.name: [spec.name for spec in tensor.specs] for tensor in self.plan.tensors}

            def is_written(name: str, record: Record) -> bool:
                return record.facts.get(_BOOT) in ("", _boot()) and record.facts[_WRITTEN] == files.ends_digest(
                    parts[name]
                )

            stage = _STAGES[self.plan.command]
            return run_resumable(tasks, stage=stage, execution=execution, journal=journal, is_valid=is_written)

    def _task(self, tensor: OutputTensor, files: TensorFiles, execution: Execution) -> Task[Record]:
        values = prod(tensor.views[0].stored_shape)
        memory = 4 * SLAB_BYTES
        if tensor.scheme is not None:
            memory += 2 * values + 12 * values * (tensor.views[0].kind == "conv1d")
            if self.plan.calibration is not None:
                memory += (
                    32 * values + 8 * (4 + len(self.plan.calibration.moments.tokens)) * tensor.views[0].shape[1] ** 2
                )
        elif tensor.views[0].kind == "expert":
            memory += 4 * values
        return Task(tensor.name, tensor.info.nbytes, memory, lambda: self._record(tensor, files, execution))

    def _record(self, tensor: OutputTensor, files: TensorFiles, execution: Execution) -> Record:
        facts, names = self._write_tensor(tensor, files, execution), [spec.name for spec in tensor.specs]
        synced = execution.several_machines  # the machine that finishes is another one
        if synced:
            files.sync(names)
        return Record(facts | {_WRITTEN: files.ends_digest(names), _BOOT: "" if synced else _boot()})

    def _write_tensor(self, tensor: OutputTensor, files: TensorFiles, execution: Execution) -> dict[str, Any]:
        cost = RoundingCost()
        requantized = None
        for view in tensor.views:
            update = update_for(self.plan, tensor, view) if view.name in tensor.terms else None
            if tensor.scheme is not None:  # and then this is the only matrix
                requantized = self._requantized(tensor, tensor.scheme, update, execution)
            row = 0
            for stored in stored_rows_of(tensor, view):
                if update is not None:
                    rows = _updated(tensor, view, update, stored=stored, row=row, cost=cost)
                else:
                    rows = _converted(tensor, stored)
                if requantized is not None:
                    if update is None:
                        _check_range(tensor, view, rows)
                    requantized.add(stored, rows)
                else:
                    files.write(tensor.name, rows, (view.first_row + row) * view.stored_shape[1])
                row += len(stored)
        if requantized is None:
            return cost.facts()
        for name, values in requantized.tensors():
            files.write(name, values)
        return requantized.facts()

    def _requantized(
        self, tensor: OutputTensor, scheme: "Scheme", update: Update | None, execution: Execution
    ) -> Requantized | CollectedWeight:
        """What quantizes a weight: as its rows arrive, or when they all have."""
        view, calibration = tensor.views[0], self.plan.calibration
        transposed = view.kind == "conv1d"  # bitsandbytes stores each weight as (out, in), Conv1D's too
        if calibration is None or not calibration.covers(view.module):
            if isinstance(scheme, Nf4Scheme):
                return Requantized(scheme, transposed=transposed)
            nearest = scheme.quantize
            return CollectedWeight(scheme.tensors, lambda weight: (nearest(weight), {}), transposed=transposed)
        directions = None
        if update is not None and update.products is not None:
            left, right = update.products
            directions = left.T if transposed else right

        # The values of a quantized base are on the grid of its scales: with others, all would be rounded again.
        keeps_scales = update is not None and tensor.original is None

        def quantize(weight: Tensor) -> tuple[QuantizedWeight, Mapping[str, Any]]:
            return calibration.quantize(
                view.module,
                weight,
                (lambda weight, _=None: scheme.quantize(weight)) if keeps_scales else scheme.quantize,
                directions=directions,
                generator=execution.generator(tensor.name),
            )

        return CollectedWeight(scheme.tensors, quantize, transposed=transposed)


def _updated(
    tensor: OutputTensor, view: MatrixView, update: Update, *, stored: Tensor, row: int, cost: RoundingCost
) -> Tensor:
    """Rows from `row` on with their update, in the dtype to write; rows to be quantized are not rounded first."""
    rows = torch.empty(stored.shape, dtype=update.dtype if tensor.scheme else tensor.dtype.torch)
    done = 0
    for number, block in enumerate(in_cache(stored)):
        before = block.to(update.dtype)
        changed = update.apply(before, row + done)
        _check_range(tensor, view, changed, update)
        rows[done : done + len(block)] = changed
        if rows.dtype != changed.dtype and number % MEASURED == 0:
            cost.add(before, changed, rows[done : done + len(block)])
        done += len(block)
    return rows


def _converted(tensor: OutputTensor, stored: Tensor) -> Tensor:
    """Rows without an update, in the dtype to write."""
    rows = stored.to(tensor.dtype.torch)
    if rows.dtype != stored.dtype and count_non_finite([rows]) > count_non_finite([stored]):
        largest = float(stored.double().nan_to_num(0, 0, 0).abs().max())
        raise NotFiniteError(too_large(tensor.name, rows.dtype, largest))
    return rows


def _check_range(tensor: OutputTensor, view: MatrixView, rows: Tensor, update: Update | None = None) -> None:
    """Refuse rows that the dtype to write cannot represent, and say where the value comes from."""
    if is_held(rows, tensor.dtype.torch):
        return
    if bad := count_non_finite(stored_rows_of(tensor, view)):
        msg = f"{tensor.base.source}: {view.name} contains {bad:,} values that are NaN or Inf; repair the checkpoint"
    elif torch.isfinite(rows).all():
        msg = too_large(tensor.name, tensor.dtype.torch, float(rows.abs().max()))
    else:
        scales = f" ({', '.join(update.scales)})" if update and update.scales else ""
        msg = f"{tensor.name}: the result is not finite: the update is too large{scales}, or a DoRA norm is zero"
    raise NotFiniteError(msg)


def _boot() -> str:
    """An identifier of this boot: a restart of the machine may have lost values that were not on the disk yet."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text() if file.exists() else ""
