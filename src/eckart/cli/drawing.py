"""Figures and the page that a command leaves next to its numbers, where the libraries that draw them are installed."""

import json
import webbrowser
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eckart.cli.output import note
from eckart.errors import MissingExtraError, OptionError

PAGE = "report.html"
FIGURE_LIBRARY, PAGE_LIBRARY = "matplotlib", "jinja2"


class Drawing:
    """What is drawn into an output before it gets its final name; what cannot be is said once, before the work."""

    def __init__(
        self,
        output: Path | None,
        *,
        save: str | None = None,
        page: str | None = None,
        figures: str = "figures",
        open_page: bool = False,
    ) -> None:
        """Check the libraries.

        Args:
            output: the folder or file that is to be written, or None for no files at all.
            save: the function of `eckart.report` that draws figures of a result; None if the command has none.
            page: the function of `eckart.report.page` that makes the page of a result; None if there is none.
            figures: what the figures are called.
            open_page: whether to open it in the browser at the end.

        Raises:
            OptionError: there is no page to open.
        """
        if open_page and output is None:
            msg = "`open` shows the page in the output folder; add `output`"
            raise OptionError(msg)
        self._output, self._open = output, open_page
        self._save = save if find_spec(FIGURE_LIBRARY) is not None else None
        self._page = page if find_spec(PAGE_LIBRARY) is not None else None
        skipped = [figures] if save is not None and self._save is None else []
        skipped += [PAGE] if page is not None and self._page is None else []
        if output is not None and skipped:
            note(f"No {' and no '.join(skipped)}: {MissingExtraError.for_extra('report', 'drawing')}")

    def draw(self, output: Path, result: Any, **options: Any) -> None:
        """Draw what can be drawn of a result into its output, which does not have its final name yet."""
        if self._save is not None:
            from eckart import report

            getattr(report, self._save)(result, output, **options)
        if self._page is not None and self._output is not None:
            from eckart.report import page

            html = getattr(page, self._page)(result, title=self._output.resolve().name)
            (output / PAGE).write_text(html, encoding="utf-8")

    def finish(self, what: str | None = "Results") -> None:
        """Say where the results and the page are, and open the page if that was asked for.

        Args:
            what: what the output contains; None if its path is shown elsewhere.
        """
        if self._output is None:
            return
        page = self._output / PAGE
        if what and self._output.exists():
            note(f"{what} in {self._output}")
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
    """Write a result as JSON into the folder that will be the output."""
    (folder / name).write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
