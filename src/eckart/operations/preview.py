"""What an operation would do, from headers alone: the result of a dry run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eckart.checkpoint import Checkpoint, MatrixView
from eckart.result import Result, Skipped


@dataclass(frozen=True)
class Match:
    """A module that an operation would change.

    Attributes:
        name: of the module.
        shape: of its weight or update.
        ranks: rank of the module's update in each input adapter, in their order; 0 where one has none.
        rank: rank in the result, if headers determine it; None if the spectrum does or the result is not an adapter.
        stored: encoding or data type of its weight, of each model that is read; () if it is not a weight.
    """

    name: str
    shape: tuple[int, int]
    ranks: tuple[int, ...]
    rank: int | None = None
    stored: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The entry of a `matches` list."""
        fields = {"name": self.name, "shape": list(self.shape), "ranks": list(self.ranks), "rank": self.rank}
        return fields | {"stored": list(self.stored)}


def stored_as(view: MatrixView, *checkpoints: Checkpoint) -> tuple[str, ...]:
    """The encoding or data type of a matrix in each of these checkpoints."""
    return tuple(each.tensors[each.tied.get(view.tensor, view.tensor)].stored for each in checkpoints)


@dataclass(frozen=True, repr=False)
class Preview(Result):
    """What would be read, changed and written.

    Attributes:
        made_by: the operation, such as `merge`.
        matches: modules that would change.
        skipped: modules and tensors that would be left as they are, with the reason.
        read_bytes: size of all tensors that would be read.
        written_bytes: size of the output, at most.
        notes: what a user should know before starting.
    """

    made_by: str
    matches: Sequence[Match]
    skipped: Sequence[Skipped]
    read_bytes: int
    written_bytes: int
    notes: Sequence[str] = ()

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """One row per module."""
        return [match.to_json() for match in self.matches]

    def to_json(self) -> dict[str, Any]:
        """The `eckart-<operation>-preview/2` object."""
        return {
            "format": f"eckart-{self.made_by}-preview/2",
            "matches": [match.to_json() for match in self.matches],
            "skipped": [item.to_json() for item in self.skipped],
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
            "notes": list(self.notes),
        }
