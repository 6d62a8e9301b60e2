"""Matching the regexes in a PEFT config as PEFT does, but with bounded time.

A regex from an untrusted file can take exponential time. The time is bounded from its text: if no group is repeated,
the number of ways to match a name is at most the product of the choices at each repeat, option and alternative.
"""

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

_MAX_KEY = 1000  # characters
_MAX_WAYS = 100_000_000  # about a second


def first_match(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first key that PEFT would match with the module's name.

    Raises:
        ValueError: a key is not a regex, or could take minutes to match.
    """
    return next((value for key, value in pattern.items() if _regex(key, module, r"(.*\.)?(").match(module)), default)


def matches_whole(key: str, module: str) -> bool:
    """Whether a regex matches the full name of a module, as a string in `target_modules` must (errors as above)."""
    return _regex(key, module, "(").match(module) is not None


def _regex(key: str, module: str, before: str) -> re.Pattern[str]:
    if _ways(key, module) > _MAX_WAYS:
        msg = f"the regex {key[:60]!r} could take minutes to match: simplify it"
        raise ValueError(msg)
    return _compiled(f"{before}{key})$")


@lru_cache(maxsize=65536)
def _compiled(regex: str) -> re.Pattern[str]:
    try:
        return re.compile(regex)
    except (re.error, RecursionError, OverflowError) as error:
        msg = f"{regex[:60]!r}, from rank_pattern, alpha_pattern or target_modules, is not a regex ({error})"
        raise ValueError(msg) from error


def _ways(key: str, module: str) -> float:
    """An upper bound on the number of ways in which the regex of a key can be tried on a name."""
    repeats, choices = _freedom(key)
    # Logarithms first: the power may have a thousand digits.
    exponent = repeats * math.log10(len(module) + 1) + math.log10(module.count(".") + 1)
    return choices * 10**exponent if exponent < 100 else math.inf


@lru_cache(maxsize=65536)
def _freedom(key: str) -> tuple[int, float]:
    """The number of repeats in a key, and the number of choices from its options and alternatives."""
    # Replace escapes and character classes, in which special characters are literal.
    text = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "x", key[: _MAX_KEY + 1], flags=re.DOTALL)
    # Inline flags and comments change how the rest is parsed.
    if len(key) > _MAX_KEY or re.search(r"\)[*+{]|\(\?(?![:=!<])", text):
        return 0, math.inf
    repeats = len(re.findall(r"[*+{]", text))
    choices = 2.0 ** len(re.findall(r"(?<!\()\?", text))
    while groups := re.findall(r"\(([^()]*)\)", text):
        choices *= math.prod(group.count("|") + 1 for group in groups)
        text = re.sub(r"\([^()]*\)", "x", text)
    return repeats, choices * (text.count("|") + 1)
