"""One weight that is stored as codes and scales, and the tensors of a module among which encodings look for such."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from eckart.checkpoint.checkpoint import Checkpoint, Rows, TensorInfo
from eckart.checkpoint.dtypes import BOOL, FLOAT32, INT8, INT16, INT32, INT64, UINT8, DType
from eckart.checkpoint.writer import TensorSpec
from eckart.errors import FileFormatError

if TYPE_CHECKING:
    from torch import Tensor

    from eckart.checkpoint.encodings.integer_scheme import IntegerScheme
    from eckart.checkpoint.encodings.nf4_scheme import Nf4Scheme
    from eckart.checkpoint.encodings.scaled_scheme import ScaledScheme

_INTEGERS = (INT64, INT32, INT16, INT8, UINT8, BOOL)
_FEW_BYTES = 64


@dataclass(frozen=True)
class Encoded:
    """A weight that is stored as codes and scales.

    Attributes:
        info: header of the weight that they stand for; `quantization` names the encoding.
        parts: the stored tensors, codes first.
        rows: entries `start` to `stop` of the weight's first dimension, computed from theirs.
        scheme: how another weight is written in this way; None if eckart does not write it.
    """

    info: TensorInfo
    parts: tuple[str, ...]
    rows: Rows
    scheme: "Scheme | None" = None


@dataclass(frozen=True)
class Unreadable:
    """Codes of an encoding that is recognized, whose tensors do not fit together."""

    parts: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class PartNames:
    """The last parts of the names of one weight, its codes, its scale, and a second scale or zero points."""

    weight: str
    codes: str
    scale: str
    second: str = ""

    @property
    def stored(self) -> tuple[str, ...]:
        """Those of the stored tensors."""
        return self.codes, self.scale, self.second


@dataclass(frozen=True)
class StoredModule:
    """The tensors of one module as they are stored, by the last part of their names.

    Attributes:
        stored: the checkpoint.
        name: of the module.
        leaves: header of each of its tensors.
    """

    stored: Checkpoint
    name: str
    leaves: Mapping[str, TensorInfo]

    @property
    def has_codes(self) -> bool:
        """Whether any of them may contain codes."""
        return any(is_low_precision(info) for info in self.leaves.values())

    def read(self, leaf: str) -> "Tensor":
        """A complete tensor."""
        return self.stored.read(self.leaves[leaf].name)

    def rows(self, leaf: str, start: int, stop: int) -> "Tensor":
        """Entries of a tensor's first dimension."""
        return self.stored.rows(self.leaves[leaf].name, start, stop)

    def numbers(self, leaf: str) -> list[float]:
        """The numbers in a tensor of a few integers, read without torch; [] if it is absent or something else."""
        info = self.leaves.get(leaf)
        if info is None or info.dtype not in _INTEGERS or info.nbytes > _FEW_BYTES:
            return []
        return info.dtype.unpack(self.stored.read_bytes(info.name))

    def quantization(self) -> Mapping[str, Any]:
        """What the config states about the encoding; {} if it states nothing."""
        stated = self.stored.config.get("quantization_config")
        return stated if isinstance(stated, dict) else {}

    def weight(
        self,
        shape: tuple[int, ...],
        rows: Rows,
        *,
        encoding: str,
        parts: tuple[str, ...],
        leaf: str = "weight",
        dtype: DType = FLOAT32,
        scheme: Callable[[str], "Scheme"] | None = None,
    ) -> Encoded:
        """The weight that some of the tensors stand for.

        Args:
            shape: of the weight.
            rows: computes its entries.
            encoding: the name of the encoding.
            parts: the leaves that store it, codes first; those that the module lacks are left out.
            leaf: last part of the weight's name.
            dtype: of the computed values.
            scheme: from the weight's name, how another one is written in this way.
        """
        infos = [self.leaves[part] for part in parts if part in self.leaves]
        name = ".".join(part for part in (self.name, leaf) if part)
        weight = TensorInfo(name, shape, dtype, sum(info.nbytes for info in infos), infos[0].file, encoding)
        return Encoded(weight, tuple(info.name for info in infos), rows, scheme(name) if scheme else None)

    def spec(self, leaf: str) -> TensorSpec:
        """What another tensor in the place of one would be, under the last part of its name."""
        return TensorSpec(leaf, self.leaves[leaf].shape, self.leaves[leaf].dtype)

    def unreadable(self, parts: tuple[str, ...], reason: str) -> Unreadable:
        """Tensors that are recognized and cannot be read, with the reason."""
        return Unreadable(tuple(self.leaves[part].name for part in parts if part in self.leaves), reason)

    def shapes(self, *leaves: str) -> str:
        """The shapes of tensors, for a message."""
        found = [f"{leaf} {list(self.leaves[leaf].shape)}" for leaf in leaves if leaf in self.leaves]
        return ", ".join(found)

    def refuse(self, leaf: str, fault: str) -> FileFormatError:
        """The error for values of a tensor that no quantizer writes."""
        return FileFormatError(f"{self.stored.source}: {self.leaves[leaf].name} {fault}")


Scheme: TypeAlias = Union["ScaledScheme", "IntegerScheme", "Nf4Scheme"]
"""How a weight is stored as codes, to be written."""
Encoding: TypeAlias = Callable[[StoredModule], Iterator[Encoded | Unreadable]]
"""Finds the weights of one encoding among the tensors of a module."""


def modules_of(stored: Checkpoint) -> Iterator[StoredModule]:
    """The modules of a checkpoint, with the tensors that they share with others."""
    modules: dict[str, dict[str, TensorInfo]] = {}
    shared = {name: stored.tensors[owner] for name, owner in stored.tied.items() if owner in stored.tensors}
    for name, info in (*stored.tensors.items(), *shared.items()):
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {})[leaf] = info
    return (StoredModule(stored, module, leaves) for module, leaves in modules.items())


def is_low_precision(info: TensorInfo) -> bool:
    """Whether a tensor's values may be codes: integers, or floating-point numbers of a byte or less."""
    return not info.dtype.is_floating_point or info.dtype.itemsize == 1
