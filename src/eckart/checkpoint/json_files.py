"""Untrusted JSON: of bounded size, depth and numbers, in UTF-8, with every name once."""

import json
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from eckart.errors import FileFormatError, SourceError

MOST_BYTES = 64 * 2**20  # of a config or an index
MOST_DEPTH = 64
MOST_DIGITS = 40


def read_json_object(path: Path, *, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        SourceError: the file cannot be read.
        FileFormatError: it is too large, not JSON as `parse_json` accepts it, or not an object.
    """
    try:
        size = path.stat().st_size
        if size > most_bytes:
            msg = f"{path}: {size:,} bytes is too large, expected at most {most_bytes:,}"
            raise FileFormatError(msg)
        value = parse_json(path.read_bytes())
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise SourceError(msg) from None
    except ValueError as error:
        msg = f"{path}: not valid JSON ({error})"
        raise FileFormatError(msg) from None
    if not isinstance(value, dict):
        msg = f"{path}: expected a JSON object, got {type(value).__name__}"
        raise FileFormatError(msg)
    return value


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text; NaN and Infinity, which Python writes, are accepted.

    Raises:
        ValueError: it is not JSON in UTF-8, nested too deeply, names a field twice, or has a number of too many digits
            or half of a surrogate pair.
    """
    decoded = text if isinstance(text, str) else text.decode("utf-8-sig")
    try:
        value = json.loads(decoded, object_pairs_hook=_unique, parse_int=_bounded)
        is_deep = _is_deeper(value, MOST_DEPTH)
    except RecursionError:
        value, is_deep = None, True
    if is_deep:
        msg = f"nested more than {MOST_DEPTH} levels deep"
        raise ValueError(msg)
    if "\\ud" in decoded or "\\uD" in decoded:
        _refuse_lone_surrogates(value)
    return value


def field_faults(fields: Mapping[str, Any], expected: Mapping[str, tuple[Callable[[Any], bool], str]]) -> list[str]:
    """What is wrong with the fields of an object: one line each with its name, what was expected, and its value.

    Args:
        fields: the object; fields that are missing or null are right.
        expected: for each known field whether a value is right, and what is expected, in words.
    """
    return [
        f"{name}: expected {words}, got {repr(fields[name])[:60]}"
        for name, (is_right, words) in expected.items()
        if fields.get(name) is not None and not is_right(fields[name])
    ]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        msg = f"it names {twice!r} twice"
        raise ValueError(msg)
    return table


def _bounded(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        msg = f"a number of {len(digits):,} digits"
        raise ValueError(msg)
    return int(digits)


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether containers are nested more than `levels` deep, without recursion."""
    containers = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        inner = chain.from_iterable(each.values() if isinstance(each, dict) else each for each in containers)
        containers = [each for each in inner if isinstance(each, dict | list)]
    return bool(containers)


def _refuse_lone_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        msg = "a text has half of a surrogate pair"
        raise ValueError(msg) from None
