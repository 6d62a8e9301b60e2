"""The plan of a model folder: every tensor of the output, where it is read from and what changes it, from headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from eckart.checkpoint import TensorSpec, check_output
from eckart.checkpoint.companions import companions, has_companions, tokenizer_files
from eckart.checkpoint.manifest import CARD, TEXTS
from eckart.checkpoint.output import working_name
from eckart.checkpoint.pipeline import PipelineCheckpoint, other_files
from eckart.checkpoint.source import local_paths
from eckart.checkpoint.writer import index_name, plan_shards
from eckart.engine.fingerprint import fingerprint
from eckart.engine.journal import MODEL
from eckart.operations.preview import Match, Preview

if TYPE_CHECKING:
    from pathlib import Path

    from eckart.adapter.adapter import Adapter
    from eckart.checkpoint import Checkpoint, DType, MatrixView, TensorInfo
    from eckart.checkpoint.encodings.encoded import Scheme
    from eckart.operations.model_writer.calibrated import Calibration
    from eckart.operations.placement import Term
    from eckart.result import Skipped

_STEMS = ("model", "diffusion_pytorch_model")  # of file names that libraries search for, and that are therefore reused


@dataclass(frozen=True)
class OutputTensor:
    """One tensor to write.

    Attributes:
        name: in the output.
        base: checkpoint that it is read from.
        source: its name there; differs from `name` if it shared another tensor's weight.
        dtype: to write.
        views: the matrices in it, in order; any other tensor is one view of all its entries.
        terms: what changes each matrix, by the matrix's name; empty for a copy.
        scheme: how to quantize it; None for plain values.
        original: checkpoint with the values that the base's codes stand for, which are read instead.
    """

    name: str
    base: Checkpoint
    source: str
    dtype: DType
    views: tuple[MatrixView, ...]
    terms: Mapping[str, Sequence[Term]] = field(default_factory=dict)
    scheme: Scheme | None = None
    original: Checkpoint | None = None

    @property
    def info(self) -> TensorInfo:
        """Header of the tensor that is read."""
        return self.base.tensors[self.source]

    @property
    def specs(self) -> list[TensorSpec]:
        """Its entries in the header of the output: several if it is quantized."""
        if self.scheme is not None:
            return self.scheme.specs()
        key = self.name.partition(".")[2] if isinstance(self.base, PipelineCheckpoint) else None
        return [TensorSpec(self.name, self.views[0].tensor_shape, self.dtype, key)]

    @property
    def file(self) -> str:
        """The file that it is read from, by its path in the folder of its model or pipeline."""
        file, folder = self.info.file, self.base.folder
        return (
            file.relative_to(folder).as_posix() if isinstance(self.base, PipelineCheckpoint) and folder else file.name
        )


@dataclass(frozen=True)
class ModelPlan:
    """A model folder to write, with every input checked from headers.

    Attributes:
        command: `merge`, `unmerge` or `quantize`.
        base: the model that is read; its companion files are copied.
        tensors: every tensor of the output.
        matches: modules that are changed.
        skipped: what the output will not contain or what stays as it is, and why.
        config: config.json of the output; {} to copy the base's, if it has one.
        adapters: adapters whose updates are added.
        weights: factor of each adapter.
        compared: files of another model that the result depends on.
        tokenizer: folder of a tokenizer that replaces the base's.
        omitted: names of companion files that do not describe the output.
        as_file: name of the one file to write, rather than a folder.
        keeps_codes: whether weights are copied as codes, which texts in the headers of the base's files may describe.
        calibration: how the codes of quantized tensors are chosen; None for the nearest ones.
    """

    command: str
    base: Checkpoint
    tensors: Sequence[OutputTensor]
    matches: Sequence[Match]
    skipped: Sequence[Skipped]
    config: Mapping[str, Any]
    adapters: tuple[Adapter, ...] = ()
    weights: tuple[float, ...] = ()
    compared: tuple[Path, ...] = ()
    tokenizer: Path | None = None
    omitted: tuple[str, ...] = ()
    keeps_codes: bool = False
    calibration: Calibration | None = None
    as_file: str | None = None

    @property
    def changed(self) -> list[OutputTensor]:
        """Tensors that an adapter changes."""
        return [tensor for tensor in self.tensors if tensor.terms]

    @property
    def quantized(self) -> list[OutputTensor]:
        """Tensors that are stored as codes and scales."""
        return [tensor for tensor in self.tensors if tensor.scheme]

    @property
    def encoding(self) -> str | None:
        """What tensors are quantized to; None if none is."""
        kinds = dict.fromkeys(tensor.scheme.kind.upper() for tensor in self.tensors if tensor.scheme)
        return " and ".join(kinds) or None

    @property
    def untied(self) -> list[str]:
        """Tensors that share another's weight in the base and have their own in the output."""
        return untied(self.base, self.tensors)

    @property
    def count(self) -> int:
        """Number of tensors in the output; a quantized weight counts as one."""
        return len(self.base.tensors) + len(self.untied)

    @property
    def inputs(self) -> list[Path]:
        """Files that are read."""
        moments = [self.calibration.moments.file] if self.calibration else []
        return [
            *self.base.files,
            *self.compared,
            *moments,
            *(file for adapter in self.adapters for file in adapter.files),
        ]

    @cached_property
    def shards(self) -> dict[str, list[TensorSpec]]:
        """Files of the output and their tensors: the base's files, or files of 5 GB if it is not a model folder."""
        if self.as_file:
            return {self.as_file: [spec for tensor in self.tensors for spec in tensor.specs]}
        names = list(dict.fromkeys(tensor.file for tensor in self.tensors))
        keep = isinstance(self.base, PipelineCheckpoint) or (
            all(name.endswith(".safetensors") for name in names) and (len(names) > 1 or names[0].startswith(_STEMS))
        )
        if not keep:
            return plan_shards([spec for tensor in self.tensors for spec in tensor.specs])
        shards: dict[str, list[TensorSpec]] = {name: [] for name in names}
        for tensor in self.tensors:
            shards[tensor.file] += tensor.specs
        return shards

    @property
    def metadata(self) -> dict[str, Mapping[str, str]]:
        """Texts for the header of each file."""
        has_codes = any(info.quantization for info in self.base.tensors.values())
        texts = self.base.metadata if self.keeps_codes or not has_codes else {}
        only = next(iter(texts.values())) if len(texts) == len(self.shards) == 1 else {}
        mark = TEXTS if self.as_file else {}
        return {name: {"format": "pt", **texts.get(name, only), **mark} for name in self.shards}

    @property
    def file_names(self) -> list[str]:
        """All files of the output folder."""
        if isinstance(self.base, PipelineCheckpoint) and self.base.folder:
            indices = {index_name([name]) for name in self.shards}
            return [*self.shards, *indices, CARD, *(file.as_posix() for file in other_files(self.base.folder))]
        copied = companions(self.base.folder) if self.base.folder and has_companions(self.base) else []
        copied = [file for file in copied if file.name not in self.omitted]
        copied += tokenizer_files(self.tokenizer) if self.tokenizer else []
        return [*self.shards, index_name(self.shards), "config.json", CARD, *(file.name for file in copied)]

    @property
    def nbytes(self) -> int:
        """Bytes of the output's tensors."""
        return sum(spec.nbytes for specs in self.shards.values() for spec in specs)

    def check_output(self, output: Path, *, force: bool) -> None:
        """Refuse an output that cannot be written, before anything is computed.

        Raises:
            OutputError: it exists and `force` is not given, its folder is missing, or the disk is too small.
        """
        needed = self.nbytes - _allocated(partial_folder(output))
        bases = local_paths(*(adapter.base_model for adapter in self.adapters))
        kind = "file" if self.as_file else "folder"
        check_output(output, needed, kind=kind, force=force, inputs=[*self.inputs, *bases])

    def preview(self) -> Preview:
        """What would be changed, read and written."""
        read = sum(info.nbytes for info in self.base.tensors.values())
        read += sum(adapter.nbytes for adapter in self.adapters)
        return Preview(self.command, self.matches, self.skipped, read, self.nbytes)

    def fingerprint(self) -> str:
        """A digest of everything that the output depends on."""
        facts = {
            "command": self.command,
            "base": self.base.fingerprint(),
            "adapters": [adapter.fingerprint() for adapter in self.adapters],
            "weights": self.weights,
            "config": {name: str(value) for name, value in self.config.items()},
            "originals": sorted({it.original.fingerprint() for it in self.tensors if it.original}),
            "calibration": self.calibration.facts() if self.calibration else None,
            "tensors": [[it.name, str(it.dtype), str(it.scheme), sorted(it.terms)] for it in self.tensors],
        }
        return fingerprint(facts)


def partial_folder(output: Path) -> Path:
    """Where the files of an output are until all of them are written."""
    return working_name(output) / MODEL


def _allocated(folder: Path) -> int:
    """Bytes on the disk that an interrupted run has filled."""
    statuses = [file.stat() for file in folder.rglob("*.safetensors")]
    # Windows does not count blocks.
    return sum(status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size for status in statuses)


def untied(base: Checkpoint, tensors: Iterable[OutputTensor]) -> list[str]:
    """Tensors that share another's weight in the base and have their own in the output."""
    return [tensor.name for tensor in tensors if tensor.name in base.tied]


def dtype_entry(config: Mapping[str, Any], dtypes: Iterable[DType]) -> dict[str, str]:
    """The entry of config.json for the dtype of a model's floating-point tensors; {} if they have several."""
    floating = {dtype.name for dtype in dtypes if dtype.is_floating_point}
    if len(floating) != 1:
        return {}
    return {"torch_dtype" if "torch_dtype" in config else "dtype": floating.pop()}
