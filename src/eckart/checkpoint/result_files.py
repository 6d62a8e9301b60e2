"""Result files from strangers: every field is checked against a schema before anything is computed from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from eckart.checkpoint.json_files import read_json_object
from eckart.errors import FileFormatError

MOST_BYTES = 512 * 2**20
MOST_ROWS = 2**31

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**53)]  # exact in the page's script
Size = Annotated[int, Field(ge=0, lt=MOST_ROWS)]
Shape = Annotated[list[Size], Field(min_length=2, max_length=2)]


class Bounds(TypedDict):
    """An interval."""

    lower: Finite
    upper: Finite


class SkippedItem(TypedDict):
    """What was skipped, and why."""

    name: str
    reason: str


def read_result(file: Path, formats: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a result file; fields that its schema does not have are left out.

    Args:
        file: the file.
        formats: schema of each value of `format` that is read.

    Raises:
        SourceError: there is no such file.
        FileFormatError: it is not such a result, or a field is missing, of another type or not finite.
    """
    content = read_json_object(file, most_bytes=MOST_BYTES)
    given = content.get("format")
    if not isinstance(given, str) or given not in formats:
        msg = f"{file}: its format is {repr(given)[:60]}, expected {' or '.join(map(repr, formats))}"
        raise FileFormatError(msg)
    try:
        return TypeAdapter(formats[given]).validate_python(content, strict=True)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}, got {repr(fault['input'])[:60]}"
            for fault in error.errors(include_url=False)
        ]
        msg = f"{file}: damaged, or of another version; write it again"
        raise FileFormatError.listing(msg, faults) from None
