"""Matching the patterns in a PEFT config as PEFT does, in linear time for names and in bounded time for regexes.

A regex from an untrusted file can take exponential time. One match is bounded from its text: if no group is repeated,
the number of ways to match a name is at most the product of the choices at each repeat, option and alternative. All
matches of a config together are bounded by the processor time that they take.
"""

import math
import re
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

_MAX_KEY = 1000  # characters
_MAX_WAYS = 100_000_000  # of one match: about a second
_MAX_SECONDS = 1.0  # of all matches
_PLAIN = re.compile(
    r"(\^?)((?:\\\W|[^\^$*+?{}\[\]\\|()])*)", re.DOTALL
)  # names, escaped or with dots for any character


class RegexBudget:
    """The time that all regexes of a config may take together."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def matches(self, key: str, name: str) -> bool:
        """Whether PEFT would match a key with a module's name.

        Raises:
            ValueError: the key is not a regex, or the config's regexes could take minutes to match.
        """
        if self._seconds > _MAX_SECONDS or _ways(key, name) > _MAX_WAYS:
            msg = f"the regex {key[:60]!r} could take minutes to match: simplify it, or name modules instead"
            raise ValueError(msg)
        started = time.thread_time()
        matched = _compiled(f"(.*\\.)?({key})$").match(name) is not None
        self._seconds += time.thread_time() - started
        return matched


class NamePatterns:
    """Values by the patterns of module names, as in `rank_pattern`: the first key that matches decides.

    Keys that are names, as almost all are, are looked up; only real regexes are tried one after another.
    """

    def __init__(self, pattern: Mapping[str, Any], budget: RegexBudget) -> None:
        self._values = list(pattern.values())
        self._budget = budget
        self._regexes: list[tuple[int, str]] = []
        # Length of a name -> positions at which its key has a dot for any character -> key -> place in the pattern.
        self._names: dict[int, dict[tuple[int, ...], dict[str, int]]] = {}
        self._whole_names: dict[int, dict[tuple[int, ...], dict[str, int]]] = {}
        for index, key in enumerate(pattern):
            if plain := _PLAIN.fullmatch(key):
                text, dots = _unescaped(plain[2])
                table = self._whole_names if plain[1] else self._names
                table.setdefault(len(text), {}).setdefault(dots, {}).setdefault(text, index)
            else:
                self._regexes.append((index, key))

    def value(self, module: str, default: Any) -> Any:
        """The value of the first key that PEFT would match with the module's name.

        Raises:
            ValueError: a key is not a regex, or the regexes could take minutes to match.
        """
        # PEFT's dots do not match a line break, and its `$` matches before one.
        if "\n" in module:
            msg = f"the module {module[:60]!r} has a line break in its name, which no model has"
            raise ValueError(msg)
        named = min(self._named(module), default=len(self._values))
        for index, key in self._regexes:
            if index >= named:
                break
            if self._budget.matches(key, module):
                return self._values[index]
        return self._values[named] if named < len(self._values) else default

    def _named(self, module: str) -> Iterable[int]:
        """Places of the keys that are names and match."""
        starts = [match.end() for match in re.finditer(r"^|\.", module)]
        candidates = [(self._whole_names, 0), *((self._names, start) for start in starts)]
        for table, start in candidates:
            for dots, keys in table.get(len(module) - start, {}).items():
                index = keys.get(_masked(module[start:], dots))
                if index is not None:
                    yield index


def _unescaped(key: str) -> tuple[str, tuple[int, ...]]:
    """The name that a key without operators describes, and where any character may stand for its dot."""
    text, dots = "", []
    for number, part in enumerate(re.split(r"\\(\W)", key)):
        if number % 2 == 0:
            dots += [len(text) + match.start() for match in re.finditer(r"\.", part)]
        text += part
    return text, tuple(dots)


def _masked(name: str, dots: tuple[int, ...]) -> str:
    """A name with dots at these positions."""
    if all(name[dot] == "." for dot in dots):
        return name
    characters = list(name)
    for dot in dots:
        characters[dot] = "."
    return "".join(characters)


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
