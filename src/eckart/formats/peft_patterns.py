"""The regexes in a PEFT config, matched as PEFT matches them, but never for minutes.

A regex from a stranger's file can be written to take exponential time. Which ones do is read off the text: the ways to
match a name are at most the product of what each repeat, option and alternative leaves open, if no group is repeated.
"""

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

_MAX_KEY = 1000  # characters
_MAX_WAYS = 100_000_000  # a second or so


def first_match(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first key that PEFT would match with the module's name.

    Raises:
        ValueError: a key is no regex, or one that could take minutes to match.
    """
    return next((value for key, value in pattern.items() if _regex(key, module, r"(.*\.)?(").match(module)), default)


def matches_whole(key: str, module: str) -> bool:
    """Whether a regex matches the whole name of a module, as a text in `target_modules` must (errors as above)."""
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
    """An upper limit of the ways in which the regex of a key can be tried on a name."""
    repeats, choices = _freedom(key)
    # Logarithms first: the power itself may be a number of a thousand digits.
    exponent = repeats * math.log10(len(module) + 1) + math.log10(module.count(".") + 1)
    return choices * 10**exponent if exponent < 100 else math.inf


@lru_cache(maxsize=65536)
def _freedom(key: str) -> tuple[int, float]:
    """How often a key repeats something, and how many ways its options and alternatives make."""
    # Without escapes and character classes, whose signs mean themselves.
    text = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "x", key[: _MAX_KEY + 1], flags=re.DOTALL)
    # Inline flags and comments change how the rest is read.
    if len(key) > _MAX_KEY or re.search(r"\)[*+{]|\(\?(?![:=!<])", text):
        return 0, math.inf
    repeats = len(re.findall(r"[*+{]", text))
    choices = 2.0 ** len(re.findall(r"(?<!\()\?", text))
    while groups := re.findall(r"\(([^()]*)\)", text):
        choices *= math.prod(group.count("|") + 1 for group in groups)
        text = re.sub(r"\([^()]*\)", "x", text)
    return repeats, choices * (text.count("|") + 1)
