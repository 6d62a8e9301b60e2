"""`eckart report`: results as one interactive page."""

from pathlib import Path
from typing import Annotated

import typer

from eckart.cli.options import Force


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders that analyze, extract, train or sweep wrote.")
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.html", help="The page to write.")],
    force: Force = False,
) -> None:
    """Write one HTML page of results: it needs no network, and works from disk.

    It shows a map of the layers, each spectrum, and what a rank, an energy, an
    error or a budget costs and keeps, with the command that extracts it. Several
    folders are shown side by side.

    \b
    $ eckart analyze tuned --base base -o update
    …
    $ eckart report update extracted adapter -o report.html
    Report of update, extracted, adapter in report.html (2.21 MB)
    """  # noqa: D301
    from eckart.cli.output import note
    from eckart.report.page import read_results, write_page
    from eckart.report.words import bytes_text

    file = write_page(read_results(folders), output, force=force)
    names = ", ".join(folder.resolve().name for folder in folders)
    note(f"Report of {names} in {file} ({bytes_text(file.stat().st_size)})")
