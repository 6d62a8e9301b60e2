"""A number that is only bounded; it needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """Bounds on a number, both inclusive."""

    lower: float
    upper: float

    @property
    def is_exact(self) -> bool:
        """Whether the bounds are equal."""
        return self.lower == self.upper
