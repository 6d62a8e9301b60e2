"""A model folder written from another, tensor by tensor, some of them changed; a killed run goes on where it was.

Files lie under `OUT.partial/model` until all tensors are in them. Each tensor that is finished is noted in the journal.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eckart.checkpoint import Checkpoint, DType, MatrixView, TensorInfo, TensorSpec, check_output, copy_companions
from eckart.checkpoint.companions import has_companions
from eckart.checkpoint.matrices import rows_of
from eckart.checkpoint.nf4_scheme import Nf4Scheme
from eckart.checkpoint.output import publish, refusing_full_disk
from eckart.checkpoint.writer import TensorFiles, open_files, plan_shards, write_index
from eckart.engine import Execution, Journal, Record, Task, open_journal, run_resumable
from eckart.errors import NotFiniteError
from eckart.linalg.slabs import NORM_CHUNK, SLAB_BYTES
from eckart.operations.model_writer.requantize import Requantized
from eckart.operations.model_writer.rounding_cost import Cost
from eckart.operations.placement import Term
from eckart.operations.weight_update import Update

MODEL = "model"
LEAST_ROWS = 64  # that a product with a wide factor takes at once, or reading the factor is most of the work
MEASURED = 8  # parts of which one tells what rounding costs
_STEMS = ("model", "diffusion_pytorch_model")  # of files that keep their names: libraries look for them


@dataclass(frozen=True)
class Rewritten:
    """One tensor to write.

    Attributes:
        name: in the output.
        base: what it is read from.
        source: its name there: another one where a tie is cut.
        dtype: to write.
        views: the matrices in it, one after another; a tensor that is none is seen as one.
        terms: what changes each matrix, by its name; empty for a copy.
        scheme: how to quantize it; None for plain values.
    """

    name: str
    base: Checkpoint
    source: str
    dtype: DType
    views: tuple[MatrixView, ...]
    terms: Mapping[str, Sequence[Term]]
    scheme: Nf4Scheme | None = None

    @property
    def info(self) -> TensorInfo:
        """What is read."""
        return self.base.tensors[self.source]

    @property
    def specs(self) -> list[TensorSpec]:
        """What the file's header says of it: several tensors where it is quantized."""
        if self.scheme is not None:
            return self.scheme.specs()
        return [TensorSpec(self.name, self.views[0].tensor_shape, self.dtype)]

    def stored(self, view: MatrixView) -> Iterator[Tensor]:
        """Rows of one of its matrices as the base stores them."""
        return rows_of(self.base, view)


Updates = Callable[[Rewritten, MatrixView, Callable[[], Iterator[Tensor]]], Update]


def in_cache(rows: Tensor) -> tuple[Tensor, ...]:
    """Rows in parts that stay in the processor's cache from one step of a computation to the next."""
    return rows.split(max(LEAST_ROWS, NORM_CHUNK // max(rows.shape[1], 1)))


def shards_of(tensors: Sequence[Rewritten]) -> dict[str, list[TensorSpec]]:
    """The files of the output: those of the base, or files of 5 GB where it is no folder of safetensors."""
    names = list(dict.fromkeys(tensor.info.file.name for tensor in tensors))
    keep = all(name.endswith(".safetensors") for name in names) and (len(names) > 1 or names[0].startswith(_STEMS))
    if not keep:
        return plan_shards([spec for tensor in tensors for spec in tensor.specs])
    shards: dict[str, list[TensorSpec]] = {name: [] for name in names}
    for tensor in tensors:
        shards[tensor.info.file.name] += tensor.specs
    return shards


@dataclass(frozen=True)
class Rewriting:
    """Tensors of a base on their way into a folder.

    Attributes:
        base: whose companions come along.
        tensors: every tensor of the output.
        updates: reads what changes a matrix, given the tensor, the matrix and how to read its rows; None where none is.
        config: of the output; {} for none.
    """

    base: Checkpoint
    tensors: Sequence[Rewritten]
    updates: Updates | None
    config: Mapping[str, Any]

    def write(
        self, output: Path, fingerprint: str, execution: Execution, *, stage: str, force: bool = False
    ) -> dict[str, dict[str, Any]]:
        """Write the folder, whole or not at all.

        Returns:
            what was noted of each tensor.

        Raises:
            OutputError: it must not, or cannot, be written.
            NotFiniteError: a changed matrix holds NaN or Inf, or what its dtype cannot hold.
        """
        shards = shards_of(self.tensors)
        folder = output.with_name(f"{output.name}.partial") / MODEL
        needed = sum(spec.nbytes for specs in shards.values() for spec in specs) - _allocated(folder)
        check_output(output, needed, force=force, inputs=[self.base.folder])
        remedy = "free some space and run the same command again: it goes on where it stopped"
        with (
            open_journal(output, f"{fingerprint} {_boot()}".strip(), execution) as journal,
            refusing_full_disk(output, remedy),
        ):
            assert journal is not None
            records = self._fill(folder, shards, journal, execution, stage)
            write_index(folder, shards)
            if self.base.folder and has_companions(self.base):
                copy_companions(self.base.folder, folder)
            if self.config:
                (folder / "config.json").write_text(json.dumps(self.config, indent=2, default=str) + "\n")
            check_output(output, force=force)
            publish(folder, output)
        return {name: record.facts for name, record in records.items()}

    def _fill(
        self,
        folder: Path,
        shards: Mapping[str, Sequence[TensorSpec]],
        journal: Journal,
        execution: Execution,
        stage: str,
    ) -> dict[str, Record]:
        folder.mkdir(exist_ok=True)
        for file in folder.iterdir():
            if journal.restarted or file.name not in shards:
                file.unlink()
        with open_files(folder, shards) as files:
            if files.is_new:
                journal.clear()
            tasks = [self._task(tensor, files) for tensor in self.tensors]
            return run_resumable(tasks, stage=stage, execution=execution, journal=journal)

    def _task(self, tensor: Rewritten, files: TensorFiles) -> Task[Record]:
        values = prod(tensor.views[0].stored_shape)
        held = 4 * SLAB_BYTES
        if tensor.scheme is not None:
            held += 2 * values + 12 * values * (tensor.views[0].kind == "conv1d")
        elif tensor.views[0].kind == "expert":
            held += 4 * values
        return Task(tensor.name, tensor.info.nbytes, held, lambda: self._write_tensor(tensor, files))

    def _write_tensor(self, tensor: Rewritten, files: TensorFiles) -> Record:
        turned = tensor.views[0].kind == "conv1d"  # bitsandbytes has every weight as (out, in), also that of a Conv1D
        requantized, cost = Requantized(tensor.scheme, turned=turned) if tensor.scheme else None, Cost()
        for view in tensor.views:
            read = partial(tensor.stored, view)
            update = self.updates(tensor, view, read) if self.updates and view.name in tensor.terms else None
            row = 0
            for stored in read():
                if update is None:
                    rows = _converted(tensor, stored)
                    if requantized is not None:
                        self._check(tensor, view, rows)
                else:
                    rows = self._changed(tensor, view, update, stored=stored, row=row, cost=cost)
                if requantized is not None:
                    requantized.add(stored, rows)
                else:
                    files.write(tensor.name, rows, (view.first_row + row) * view.stored_shape[1])
                row += len(stored)
        if requantized is None:
            return Record(cost.facts())
        for name, values in requantized.tensors():
            files.write(name, values)
        return Record(requantized.facts())

    def _changed(
        self, tensor: Rewritten, view: MatrixView, update: Update, *, stored: Tensor, row: int, cost: Cost
    ) -> Tensor:
        """Rows from `row` on, changed, in the dtype to write; those to be quantized are not rounded before."""
        rows = torch.empty(stored.shape, dtype=update.dtype if tensor.scheme else tensor.dtype.torch)
        done = 0
        for number, part in enumerate(in_cache(stored)):
            before = part.to(update.dtype)
            changed = update.apply(before, row + done)
            self._check(tensor, view, changed)
            rows[done : done + len(part)] = changed
            if rows.dtype != changed.dtype and number % MEASURED == 0:
                cost.add(before, changed, rows[done : done + len(part)])
            done += len(part)
        return rows

    def _check(self, tensor: Rewritten, view: MatrixView, slab: Tensor) -> None:
        """Refuse changed rows that the dtype to write cannot hold, and find out whose fault it is."""
        limit = torch.finfo(tensor.dtype.torch).max
        # A NaN among them makes both NaN, which no comparison is true of.
        least, most = torch.aminmax(slab) if slab.numel() else (0, 0)
        if -limit <= least and most <= limit:
            return
        bad = sum(int((~torch.isfinite(rows)).sum()) for rows in tensor.stored(view))
        if bad:
            msg = f"{self.base.source}: {view.name} holds {bad:,} values that are NaN or Inf; mend the checkpoint"
        elif torch.isfinite(slab).all():
            msg = f"{tensor.name}: a value becomes {float(slab.abs().max()):.4g}, more than {tensor.dtype} holds; "
            msg += "write another with --dtype bfloat16 or float32"
        else:
            msg = f"{tensor.name}: the result is not finite, for the adapter's scale is not, or a norm of DoRA is zero"
        raise NotFiniteError(msg)


def _boot() -> str:
    """What changes when the machine restarts, which may have lost values that were not on the disk yet."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text() if file.exists() else ""


def _converted(tensor: Rewritten, stored: Tensor) -> Tensor:
    """Rows that nothing changes, in the dtype to write."""
    rows = stored.to(tensor.dtype.torch)
    if rows.dtype != stored.dtype and not torch.equal(torch.isfinite(rows), torch.isfinite(stored)):
        msg = f"{tensor.name}: a value of {float(stored.abs().max()):.4g} is more than --dtype {tensor.dtype} holds"
        raise NotFiniteError(msg)
    return rows


def _allocated(folder: Path) -> int:
    """Bytes on the disk that an interrupted run has filled."""
    statuses = [file.stat() for file in folder.glob("*.safetensors")]
    # Windows does not count blocks.
    return sum(status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size for status in statuses)
