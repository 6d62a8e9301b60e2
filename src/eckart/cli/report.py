"""`eckart report`: results as one interactive page."""

from pathlib import Path
from typing import Annotated

import typer

from eckart.cli.options import RESULT, Debug, Force, Open, in_group


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...", help="Folders written by analyze, extract, resize --gain, train, sweep or compare."
        ),
    ],
    *,
    output: Annotated[Path, in_group(RESULT, "--output", "-o", metavar="FILE.html", help="The page to write.")],
    force: Force = False,
    open_page: Open = False,
    debug: Debug = False,
) -> None:
    """Write one HTML page of results, which needs no network and works from disk.

    It shows a map of the layers, each spectrum, and what a rank, an energy, an error, a budget or the directions above
    rounding cost and keep, with the command that extracts it. Several folders are shown side by side; next to an
    extraction with --gain, the ranks of its update can be chosen by the gain that was measured.

    \b
    $ eckart analyze tuned --base base -o update
    …
    $ eckart report update extracted adapter -o report.html
    Report of update, extracted, adapter in report.html (2.34 MB)
    """  # noqa: D301
    from eckart.checkpoint import check_output
    from eckart.cli.drawing import open_in_browser
    from eckart.cli.output import note
    from eckart.report.page import read_results
    from eckart.report.words import bytes_text

    check_output(output, kind="file", force=force, inputs=folders)
    results = read_results(folders)
    from eckart.report.page import write_page  # imports torch

    file = write_page(results, output, force=force, inputs=folders)
    names = ", ".join(folder.resolve().name for folder in folders)
    note(f"Report of {names} in {file} ({bytes_text(file.stat().st_size)})")
    if open_page:
        open_in_browser(file)
