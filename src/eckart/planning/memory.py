"""An amount of memory as people type it, and what of a GPU's is there for tensors."""

import re
from dataclasses import dataclass

from eckart.errors import OptionError

ROOM_BYTES = 500_000_000  # of a GPU: its CUDA context, cuBLAS' workspace, and gaps between tensors
CARDS_GB = (8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 141, 192)  # that are sold
_TEXT = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[kmgt]i?b?|b)", re.IGNORECASE)
_SCALES = {"k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class Memory:
    """Memory of a GPU, or of whatever trains.

    Attributes:
        nbytes: all of it.
        text: as it was typed.
    """

    nbytes: int
    text: str

    @classmethod
    def parse(cls, text: str) -> "Memory":
        """An amount such as `24GB`, `80 GB` or `24GiB`; GB are powers of 1000, GiB of 1024.

        Raises:
            OptionError: the text is no amount, or less than what is kept free.
        """
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            msg = f"--memory {text}: expected an amount such as 24GB, 80 GB or 24GiB"
            raise OptionError(msg)
        unit = match["unit"].lower()
        base = 1024 if "i" in unit else 1000
        nbytes = int(float(match["number"]) * base ** _SCALES.get(unit[0], 0))
        if nbytes <= ROOM_BYTES:
            msg = f"--memory {text}: {ROOM_BYTES / 1e9:g} GB of it are kept free, so nothing fits; did you mean GB?"
            raise OptionError(msg)
        return cls(nbytes, text.strip())

    @property
    def usable_bytes(self) -> int:
        """What tensors can have: all but `ROOM_BYTES`."""
        return self.nbytes - ROOM_BYTES


def smallest_card(peak_bytes: int) -> int | None:
    """GB of the smallest usual GPU that holds a peak; None where it takes several."""
    return next((size for size in CARDS_GB if peak_bytes <= size * 10**9 - ROOM_BYTES), None)
