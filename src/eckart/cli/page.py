"""The page beside the results of a command, where the libraries that it takes are there."""

from pathlib import Path


def page_beside(folder: Path) -> None:
    """Write `report.html` of what a folder holds into it; say so where an extra is missing."""
    from eckart.cli.output import note
    from eckart.errors import MissingExtraError
    from eckart.report.page import read_results, write_page

    try:
        write_page(read_results([folder]), folder / "report.html", force=True)
    except MissingExtraError as error:
        note(f"No report.html: {error}")
