"""Amounts of memory: as people type them, what of a GPU's is left for tensors, and what it is used for."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from eckart.errors import OptionError

Part = Literal["weights", "adapters", "gradients", "optimizer", "activations", "other"]
PARTS: tuple[Part, ...] = get_args(Part)
RESERVED_BYTES = 500_000_000  # of a GPU: its CUDA context, cuBLAS' workspace, and gaps between tensors
CARDS_GB = (8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 141, 192)  # sizes that are sold
_TEXT = re.compile(r"((?P<gpus>\d+)\s*[x×]\s*)?(?P<number>\d+(\.\d+)?)\s*(?P<unit>[kmgt]i?b?|b)", re.IGNORECASE)
_SCALES = {"k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class Memory:
    """Memory of a GPU, or of whatever trains.

    Attributes:
        nbytes: size of one GPU's.
        text: as the user typed it.
        gpus: number of GPUs that have it.
    """

    nbytes: int
    text: str
    gpus: int = 1

    @classmethod
    def parse(cls, text: str) -> "Memory":
        """An amount such as `24GB`, `80 GB`, `24GiB` or `8x80GB`; GB are powers of 1000, GiB of 1024.

        Raises:
            OptionError: the text is not an amount, or the amount is less than `RESERVED_BYTES`.
        """
        match = _TEXT.fullmatch(text.strip())
        if match is None or match["gpus"] == "0":
            msg = f"`memory` must be an amount such as 24GB, 24GiB or, for several GPUs, 8x80GB, got {text!r}"
            raise OptionError(msg)
        unit = match["unit"].lower()
        base = 1024 if "i" in unit else 1000
        nbytes = int(float(match["number"]) * base ** _SCALES.get(unit[0], 0))
        if nbytes <= RESERVED_BYTES:
            msg = f"`memory` must be above {RESERVED_BYTES / 1e9:g} GB, which is reserved, got {text}; did you mean GB?"
            raise OptionError(msg)
        return cls(nbytes, text.strip(), int(match["gpus"] or 1))

    @property
    def usable_bytes(self) -> int:
        """What is left for tensors: all but `RESERVED_BYTES`."""
        return self.nbytes - RESERVED_BYTES


def smallest_card(peak_bytes: int) -> int | None:
    """Size in GB of the smallest common GPU with room for a peak; None if no single GPU has it."""
    return next((size for size in CARDS_GB if peak_bytes <= size * 10**9 - RESERVED_BYTES), None)


def number_of_gpus(gpus: int | None, memory: Memory | None) -> int:
    """How many GPUs train together, by an option or by an amount such as `8x80GB`.

    Raises:
        OptionError: both say so, and differ.
    """
    listed = memory.gpus if memory else 1
    if gpus is not None and listed > 1 and gpus != listed:
        msg = f"`gpus` is {gpus}, but `memory` is that of {listed} GPUs: give one of them"
        raise OptionError(msg)
    return listed if gpus is None else gpus
