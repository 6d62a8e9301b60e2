"""The rules of thumb for an adapter: rank, scale, dropout, where, by the size of the data."""

import re
from dataclasses import dataclass
from typing import Literal

from eckart.errors import OptionError

SMALL_EXAMPLES, LARGE_EXAMPLES = 1_000, 50_000
TOKENS_PER_EXAMPLE = 250  # to compare data counted in tokens
EFFECTIVE_BATCH = 16
_TEXT = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<scale>[kmb]?)\s*(?P<unit>examples|tokens)?", re.IGNORECASE)
_SCALES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}

Size = Literal["small", "usual", "large"]


@dataclass(frozen=True)
class DataSize:
    """How much there is to learn from, in examples; tokens count as examples of 250."""

    examples: int
    text: str

    @classmethod
    def parse(cls, text: str) -> "DataSize":
        """A size such as `5000`, `20k examples` or `3M tokens`.

        Raises:
            OptionError: the text is no size.
        """
        match = _TEXT.fullmatch(text.strip())
        count = float(match["number"]) * _SCALES[match["scale"].lower()] if match else 0
        if match is None or count < 1:
            msg = f"--data-size {text}: expected examples such as 5000 or 20k, or tokens such as '3M tokens'"
            raise OptionError(msg)
        in_tokens = (match["unit"] or "").lower() == "tokens"
        return cls(max(round(count / TOKENS_PER_EXAMPLE), 1) if in_tokens else round(count), text.strip())

    @property
    def size(self) -> Size:
        """Small, usual or large."""
        if self.examples < SMALL_EXAMPLES:
            return "small"
        return "large" if self.examples >= LARGE_EXAMPLES else "usual"


@dataclass(frozen=True)
class Rule:
    """What the guide says for a size of data.

    Attributes:
        rank: of the adapter.
        dropout: of its inputs.
        why: in words.
    """

    rank: int
    dropout: float
    why: str


RULES: dict[Size, Rule] = {
    "small": Rule(8, 0.1, f"fewer than {SMALL_EXAMPLES:,} examples: 4 to 8 learn them, more learns them by heart"),
    "usual": Rule(16, 0.05, "16 serves most tasks; 4 to 8 for a quick try, 32 to 64 for a complex one"),
    "large": Rule(32, 0.0, f"{LARGE_EXAMPLES:,} examples or more: 32 to 64 have room; 128 and more rarely pay"),
}
