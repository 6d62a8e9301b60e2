"""A checkpoint some of whose tensors are other tensors of a base, or are computed from them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from eckart.checkpoint.checkpoint import Checkpoint, Rows, TensorInfo, check_rows
from eckart.checkpoint.encodings.encoded import Encoded

if TYPE_CHECKING:
    from torch import Tensor


class DerivedCheckpoint:
    """A model that differs from a stored one: see `Checkpoint`.

    Args:
        base: the stored model, whose source, files, folder and fingerprint this one has.
        tensors: the tensors of the model.
        renamed: name in the model -> name in the base, of tensors that the base has under another name.
        computed: the tensors that the base does not have.
        config: the model's config; by default that of the base.
        tied: the model's tied tensors; by default those of the base.
        encoded: weights that the base stores as codes and scales.

    Attributes:
        stored: the checkpoint whose tensors are those in the files.
        encoded: weights that it stores as codes and scales, by their names in the model.
    """

    def __init__(
        self,
        base: Checkpoint,
        tensors: Mapping[str, TensorInfo],
        *,
        renamed: Mapping[str, str] | None = None,
        computed: Mapping[str, Rows] | None = None,
        config: Mapping[str, Any] | None = None,
        tied: Mapping[str, str] | None = None,
        encoded: Mapping[str, Encoded] | None = None,
    ) -> None:
        self.source, self.folder, self.files, self.metadata = base.source, base.folder, base.files, base.metadata
        self.kinds: Mapping[str, str] = {} if renamed else base.kinds
        self.base, self.tensors = base, tensors
        self.config: dict[str, Any] = dict(base.config if config is None else config)
        self.tied: Mapping[str, str] = base.tied if tied is None else tied
        self._renamed, self._computed = renamed or {}, dict(computed or {})
        self._computed |= {name: weight.rows for name, weight in (encoded or {}).items()}
        inner = base if isinstance(base, DerivedCheckpoint) else None
        self.stored: Checkpoint = inner.stored if inner else base
        sources = {name: self._renamed.get(name, name) for name in tensors if inner and name not in self._computed}
        self.encoded: Mapping[str, Encoded] = dict(encoded or {}) | {
            name: inner.encoded[source] for name, source in sources.items() if inner and source in inner.encoded
        }

    def read(self, name: str) -> "Tensor":
        """The complete tensor."""
        if name in self._computed:
            return self._computed[name](0, *self.tensors[name].shape[:1] or (1,))
        return self.base.read(self._renamed.get(name, name))

    def read_bytes(self, name: str) -> bytes:
        """The stored bytes of a tensor of the base."""
        return self.base.read_bytes(self._renamed.get(name, name))

    def rows(self, name: str, start: int, stop: int) -> "Tensor":
        """Entries `start` to `stop` of the first dimension."""
        if name in self._computed:
            check_rows(self.tensors[name], start, stop)
            return self._computed[name](start, stop)
        return self.base.rows(self._renamed.get(name, name), start, stop)

    def fingerprint(self) -> str:
        """That of the base."""
        return self.base.fingerprint()
