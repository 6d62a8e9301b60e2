"""Untrusted result files: everything is checked against the schema of its format before it is used."""

import json
import math
from collections.abc import Callable, Collection
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from eckart.checkpoint.json_files import read_json_object
from eckart.errors import FileFormatError

MOST_BYTES = 512 * 2**20


def read_result(file: Path, formats: Collection[str]) -> dict[str, Any]:
    """The content of a result file.

    Args:
        file: the file.
        formats: the values of `format` that are read, such as `eckart-analysis/1`; each has a JSON Schema in
            `eckart/schemas`.

    Raises:
        SourceError: there is no such file.
        FileFormatError: it is not such a result, or a field is missing, of another type or not finite.
    """
    from fastjsonschema import JsonSchemaValueException

    content = read_json_object(file, most_bytes=MOST_BYTES)
    given = content.get("format")
    if not isinstance(given, str) or given not in formats:
        msg = f"{file}: its format is {repr(given)[:60]}, expected {' or '.join(map(repr, formats))}"
        raise FileFormatError(msg)
    try:
        _validator(given)(content)
        fault = _first_not_finite(content)
    except JsonSchemaValueException as broken:
        place = ".".join(broken.path[1:])
        words = broken.message.removeprefix(str(broken.name)).strip()
        fault = f"{place} {words}, got {repr(broken.value)[:60]}"
    if fault:
        msg = f"{file}: damaged, or of another version ({fault}); write it again"
        raise FileFormatError(msg)
    return content


@cache
def _validator(name: str) -> Callable[[dict[str, Any]], Any]:
    """Checks the content of a file of one format."""
    import fastjsonschema

    def schema(file: str) -> Any:
        return json.loads((files("eckart") / "schemas" / file).read_text(encoding="utf-8"))

    return fastjsonschema.compile(schema(f"{name.replace('/', '-')}.json"), handlers={"": schema})


def _first_not_finite(value: Any, place: str = "") -> str | None:
    """Where a number is not finite, if one is: JSON has none, but Python reads them."""
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{place[1:]} should be a finite number, got {value}"
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((fault for key, each in inner if (fault := _first_not_finite(each, f"{place}.{key}"))), None)
