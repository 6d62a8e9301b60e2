"""The records in DATA, one at a time with their position, from every kind of file."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eckart.checkpoint.json_files import parse_json
from eckart.checkpoint.links import refuse_links
from eckart.errors import FileFormatError, MissingExtraError, SourceError
from eckart.evaluation.model import EXTRA

RECORD_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
FIELDS = ("text", "prompt", "completion", "messages", "tools")  # the columns that are read; others are ignored
MAX_RECORD_BYTES = 64 * 2**20
MAX_ARRAY_BYTES = 512 * 2**20
MAX_FAULTS = 1000  # reading stops after this many

Source = str | Path | Iterable[Mapping[str, Any]]
"""A file, a folder, a hub name, or the records themselves."""


def find_files(source: str | Path) -> tuple[Path, ...] | None:
    """The files of a path on disk, all texts or all records; None if it may be the name of a dataset on the hub.

    Raises:
        SourceError: there is no such path, the folder is empty, or it mixes texts and records.
    """
    path = Path(source)
    if path.is_file():
        return (path,)
    if not path.is_dir():
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", str(source)) and "/" in str(source):
            return None
        msg = f"{source}: no such file or folder, and not the name of a dataset on the hub (org/name)"
        raise SourceError(msg)
    paths = sorted(each for each in path.rglob("*") if each.is_file() and not _is_hidden(each.relative_to(path)))
    refuse_links(paths, path)
    records = [each for each in paths if has_records(each)]
    if not paths or 0 < len(records) < len(paths):
        other = next((each.name for each in paths if each not in records), "")
        content = f"records ({records[0].name}) and other files ({other})" if paths else "no files"
        msg = f"{source}: the folder contains {content}; expected texts, or {', '.join(RECORD_SUFFIXES)} files"
        raise SourceError(msg)
    return tuple(paths)


def has_records(path: Path) -> bool:
    """Whether a file contains records, by its suffix; any other is a text."""
    return path.suffix.lower() in RECORD_SUFFIXES


def read_records(source: Source, faults: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every record with its position ("data.jsonl line 7"); records that cannot be read are added to `faults`.

    Raises:
        SourceError, FileFormatError: a file cannot be read at all, or there is no such dataset.
    """
    if not isinstance(source, (str, Path)):
        for number, record in enumerate(source, 1):
            if not isinstance(record, Mapping):
                faults.append(f"record {number}: {_kind(record)}, not an object")
                continue
            try:
                complete = _without_none(dict(record))
            except RecursionError:
                faults.append(f"record {number}: nested too deeply, or in itself")
                continue
            yield f"record {number}", complete
        return
    files = find_files(source)
    if files is None:
        yield from ((f"{source} row {number}", row) for number, row in enumerate(_hub_rows(str(source)), 1))
        return
    for path in files:
        reader = _parquet if path.suffix.lower() == ".parquet" else _json if _is_array(path) else _json_lines
        yield from reader(path, faults)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _is_array(path: Path) -> bool:
    """Whether a file is one JSON array rather than one record per line."""
    with _opened(path) as file:
        return file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise SourceError(msg) from None


def _json_lines(path: Path, faults: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    number = 0
    with _opened(path) as file:
        while line := file.readline(MAX_RECORD_BYTES + 1):
            number += 1
            position = f"{path.name} line {number}"
            if len(line) > MAX_RECORD_BYTES:
                faults.append(f"{position}: longer than {MAX_RECORD_BYTES // 2**20} MiB; nothing after it was read")
                return
            if not line.strip():
                continue
            record = _parsed(line, position, faults)
            if record is not None:
                yield position, record


def _json(path: Path, faults: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.stat().st_size > MAX_ARRAY_BYTES:
        msg = f"{path}: a JSON array must fit in memory, and this one is larger than {MAX_ARRAY_BYTES // 2**20} MiB; "
        msg += "write one record per line (.jsonl)"
        raise FileFormatError(msg)
    try:
        records = parse_json(path.read_bytes())
    except ValueError as error:
        faults.append(f"{path.name}: not JSON ({error})")
        return
    for number, record in enumerate(records, 1):
        position = f"{path.name} record {number}"
        if isinstance(record, dict):
            yield position, record
        else:
            faults.append(f"{position}: {_kind(record)}, not an object")


def _parsed(line: bytes, position: str, faults: list[str]) -> Mapping[str, Any] | None:
    try:
        record = parse_json(line.strip())
    except json.JSONDecodeError as error:
        faults.append(f"{position}: not JSON ({error.msg} at column {error.colno})")
    except UnicodeDecodeError as error:
        faults.append(f"{position}: not UTF-8 text (byte {error.start + 1} of the line)")
    except ValueError as error:
        faults.append(f"{position}: not usable JSON ({error})")
    else:
        if isinstance(record, dict):
            return record
        faults.append(f"{position}: {_kind(record)}, not an object")
    return None


def _parquet(path: Path, faults: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    row = 0
    try:
        with ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in FIELDS]
            if not columns:
                faults.append(f"{path.name}: {_columns_fault(file.schema_arrow.names)}")
                return
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for record in batch.to_pylist():
                    row += 1
                    yield f"{path.name} row {row}", _without_none(record)
    except (ArrowException, OSError, ValueError) as error:
        where = f"after row {row}: " if row else ""
        faults.append(f"{path.name}: {where}not a readable Parquet file ({str(error).splitlines()[0]})")


def _hub_rows(name: str) -> Iterator[Mapping[str, Any]]:
    """The rows of the `train` split of a dataset on the hub, which `datasets` caches."""
    datasets = require_datasets("reading a dataset of the hub")
    name, _, revision = name.partition("@")
    try:
        rows = datasets.load_dataset(name, split="train", revision=revision or None)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        msg = f"{name}: there is no such file or folder, and the hub provides no such dataset ({reason})"
        raise SourceError(msg) from error
    columns = [column for column in rows.column_names if column in FIELDS]
    if not columns:
        msg = f"{name}: {_columns_fault(rows.column_names)}"
        raise FileFormatError(msg)
    return map(_without_none, rows.select_columns(columns))


def require_datasets(purpose: str) -> Any:
    """The datasets module, or an error that names the extra that installs it."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError.for_extra(EXTRA, purpose) from error
    return datasets


def _columns_fault(names: Iterable[str]) -> str:
    return f"has the columns {', '.join(names)}; expected text, or prompt and completion, or messages"


def _without_none(value: Any) -> Any:
    """A row without the fields that are empty because a table has all columns in every row."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _kind(value: object) -> str:
    """The type of a JSON value, in words."""
    names = {
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "null" if value is None else f"a {type(value).__name__}")
