"""What a command leaves beside its results: the page, where the libraries that it takes are there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def page_beside(folder: Path, *, title: str | None = None) -> None:
    """Write `report.html` of what a folder holds into it; say so where an extra is missing.

    Args:
        folder: with the files of one result.
        title: what the page calls it; the folder's own name if None.
    """
    from eckart.cli.output import note
    from eckart.errors import MissingExtraError
    from eckart.report.page import FILE, read_results, write_page

    try:
        write_page(read_results([folder], titles=title and [title]), folder / FILE, force=True)
    except MissingExtraError as error:
        note(f"No {FILE}: {error}")


def result_beside(folder: Path, name: str, result: Mapping[str, Any]) -> None:
    """Write a result as JSON into the folder that it is about, and the page of it."""
    from eckart.checkpoint import atomic_file

    with atomic_file(folder / name, force=True) as partial:
        partial.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    page_beside(folder)
