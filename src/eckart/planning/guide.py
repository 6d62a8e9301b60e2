"""Rules of thumb for the rank and dropout of an adapter, by the size of the training data."""

import re

from eckart.errors import OptionError

SMALL_EXAMPLES, LARGE_EXAMPLES = 1_000, 50_000
TOKENS_PER_EXAMPLE = 250  # to compare data counted in tokens
EFFECTIVE_BATCH = 16
_TEXT = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<scale>[kmb]?)\s*(?P<unit>examples|tokens)?", re.IGNORECASE)
_SCALES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def parse_data_size(text: str) -> int:
    """Number of examples of a size such as `5000`, `20k examples` or `3M tokens`; 250 tokens count as one example.

    Raises:
        OptionError: the text is not a size.
    """
    match = _TEXT.fullmatch(text.strip())
    count = float(match["number"]) * _SCALES[match["scale"].lower()] if match else 0
    if match is None or count < 1:
        msg = f"`data_size` must be examples such as 5000 or 20k, or tokens such as '3M tokens', got {text!r}"
        raise OptionError(msg)
    in_tokens = (match["unit"] or "").lower() == "tokens"
    return max(round(count / TOKENS_PER_EXAMPLE), 1) if in_tokens else round(count)


_SMALL = (8, 0.1, f"fewer than {SMALL_EXAMPLES:,} examples: 4 to 8 suffice, and more would memorize them")
_USUAL = (16, 0.05, "16 serves most tasks; 4 to 8 for a quick try, 32 to 64 for a complex one")
_LARGE = (32, 0.0, f"{LARGE_EXAMPLES:,} examples or more: 32 to 64 can learn more; 128 and more rarely pay")


def rule_for(examples: int | None) -> tuple[int, float, str]:
    """Rank and dropout for a number of examples, and why; None is a usual number."""
    if examples is None or SMALL_EXAMPLES <= examples < LARGE_EXAMPLES:
        return _USUAL
    return _SMALL if examples < SMALL_EXAMPLES else _LARGE
