"""What an operation on adapters would do, told from headers alone: `--dry-run`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eckart.result import Skipped


@dataclass(frozen=True)
class Match:
    """One module that an operation would work on.

    Attributes:
        name: of the module.
        shape: of its weight or update.
        ranks: of each adapter's update of it, in the order of the adapters; 0 where one has none.
    """

    name: str
    shape: tuple[int, int]
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Preview:
    """What would be read, changed and written.

    Attributes:
        made_by: the command, such as `merge`.
        matches: modules that it would work on.
        skipped: keys that nothing would happen to, and why.
        read_bytes: bytes of all tensors that it would read.
        written_bytes: bytes that it would write at most.
    """

    made_by: str
    matches: Sequence[Match]
    skipped: Sequence[Skipped]
    read_bytes: int
    written_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The `eckart-<command>-preview/2` object."""
        return {
            "format": f"eckart-{self.made_by}-preview/2",
            "matches": [
                {"name": match.name, "shape": list(match.shape), "ranks": list(match.ranks)} for match in self.matches
            ],
            "skipped": [item.to_json() for item in self.skipped],
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
        }
