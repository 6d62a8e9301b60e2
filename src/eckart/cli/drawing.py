"""Figures and the page that a command leaves next to its numbers, where the libraries that draw them are installed."""

import json
import webbrowser
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eckart.cli.output import note
from eckart.errors import MissingExtraError, OptionError

PAGE = "report.html"
FIGURE_LIBRARY, PAGE_LIBRARY = "matplotlib", "jinja2"


class Drawing:
    """What can be drawn into one output folder; what cannot is said once, before the work, and then skipped."""

    def __init__(
        self, output: Path | None, *, figures: str | None = "figures", page: bool = True, open_page: bool = False
    ) -> None:
        """Check the libraries.

        Args:
            output: the folder that is to be written, or None for no files at all.
            figures: what the figures of the command are called, or None if it draws none.
            page: whether the command writes a page.
            open_page: whether to open it in the browser at the end.

        Raises:
            OptionError: there is no page to open.
        """
        if open_page and output is None:
            msg = "`open` shows the page in the output folder; add `output`"
            raise OptionError(msg)
        self._figures = figures is not None and find_spec(FIGURE_LIBRARY) is not None
        self._page = page and find_spec(PAGE_LIBRARY) is not None
        self._open = open_page
        skipped = [figures] if figures is not None and not self._figures else []
        skipped += [PAGE] if page and not self._page else []
        if output is not None and skipped:
            note(f"No {' and no '.join(skipped)}: {MissingExtraError.for_extra('report', 'drawing')}")

    def figures(self, draw: Callable[..., object], *arguments: object) -> None:
        """Call what draws the figures, if it can."""
        if self._figures:
            draw(*arguments)

    def page(self, folder: Path, *, title: str | None = None) -> None:
        """Write the page of a folder's results into it, if it can be drawn.

        Args:
            folder: with the files of one result.
            title: what the page is called; the folder's name if None.
        """
        if self._page:
            from eckart.report.page import read_results, write_page

            write_page(read_results([folder], titles=title and [title]), folder / PAGE, force=True)

    def finish(self, folder: Path | None, what: str | None = "Results") -> None:
        """Say where the results and the page are, and open the page if that was asked for.

        Args:
            folder: where they are; None if nothing was written.
            what: what the folder contains; None if its path is shown elsewhere.
        """
        if folder is None:
            return
        page = folder / PAGE
        if what:
            note(f"{what} in {folder}")
        if page.is_file():
            note(f"Page: {page}")
        if self._open:
            open_in_browser(page)


def open_in_browser(page: Path) -> None:
    """Open a page, or say why it is not."""
    if not page.is_file():
        note(f"There is no page to open: {page} was not written")
    elif not webbrowser.open(page.resolve().as_uri()):
        note(f"No browser could be started; open {page.resolve().as_uri()}")


def write_result(folder: Path, name: str, result: Mapping[str, Any]) -> None:
    """Write a result as JSON into the folder that it describes."""
    from eckart.checkpoint import atomic_file

    with atomic_file(folder / name, force=True) as partial:
        partial.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
