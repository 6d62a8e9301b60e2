"""The page of results that were read from folders: every kind side by side, in one HTML file."""

from collections.abc import Sequence
from pathlib import Path

from eckart.checkpoint import atomic_file
from eckart.errors import FileFormatError, SourceError
from eckart.report.page.analysis import analysis_sections
from eckart.report.page.comparison import comparison_sections
from eckart.report.page.extraction import extraction_data, gain_stops, is_of
from eckart.report.page.numbers import Numbers
from eckart.report.page.render import Sections, rendered
from eckart.report.page.results import Results
from eckart.report.page.sweep import sweep_data
from eckart.report.page.training import training_data

FILE = "report.html"


def page_html(results: Results) -> str:
    """The self-contained page of some results; see `rendered`.

    Raises:
        SourceError: there is nothing to show.
        FileFormatError: a result lacks a field that the page shows.
        MissingExtraError: jinja2 is not installed.
    """
    if results.is_empty():
        msg = "there is no result to show"
        raise SourceError(msg)
    numbers = Numbers()
    return rendered(sections_of(results, numbers), numbers, title=_title(results))


def write_page(results: Results, file: str | Path, *, force: bool = False, inputs: Sequence[Path] = ()) -> Path:
    """Write the page, atomically.

    Args:
        results: the results to show.
        file: the file to write.
        force: replace an existing page.
        inputs: folders that the results were read from, which must not be changed.

    Raises:
        OutputError: the file exists and `force` is not given, or cannot be written.
        SourceError, FileFormatError, MissingExtraError: see `page_html`.
    """
    file = Path(file)
    html = page_html(results)
    with atomic_file(file, force=force, inputs=inputs) as partial:
        partial.write_text(html, encoding="utf-8")
    return file


def sections_of(results: Results, numbers: Numbers) -> Sections:
    """All results as the page shows them; long lists of numbers are added to `numbers`.

    Raises:
        FileFormatError: a result lacks a field that the page shows.
    """
    try:
        sections = analysis_sections(results.analyses, numbers)
        for section, analysis in zip(sections["analyses"], results.analyses.values(), strict=True):
            curves = [gain_stops(title, it) for title, it in results.extractions.items() if is_of(it, analysis)]
            section["gain"] = next((curve for curve in curves if curve["stops"]), None)
        return {
            **sections,
            "trainings": [training_data(title, *parts, numbers) for title, parts in results.trainings.items()],
            "sweeps": [sweep_data(title, sweep) for title, sweep in results.sweeps.items()],
            "extractions": [extraction_data(title, each) for title, each in results.extractions.items()],
            **comparison_sections(results.comparisons),
        }
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as broken:
        msg = f"a result is damaged or of another version ({type(broken).__name__}: {broken}); write it again"
        raise FileFormatError(msg) from broken


def _title(results: Results) -> str:
    names = [*results.analyses, *results.trainings, *results.sweeps, *results.extractions, *results.comparisons]
    return ", ".join(dict.fromkeys(names))
