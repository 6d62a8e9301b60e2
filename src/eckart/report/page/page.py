"""Rendering the page: results as data, together with styles and scripts, in one HTML file."""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eckart.checkpoint import atomic_file
from eckart.checkpoint.manifest import FORMAT
from eckart.errors import FileFormatError, MissingExtraError, SourceError
from eckart.linalg.scaling import exponent_of
from eckart.report.page import bundle
from eckart.report.page.analysis import analysis_data
from eckart.report.page.comparison import comparison_data, merge_check_data
from eckart.report.page.extraction import extraction_data
from eckart.report.page.numbers import Numbers
from eckart.report.page.results import Results
from eckart.report.page.sweep import sweep_data
from eckart.report.page.training import training_data
from eckart.version import __version__

FILE = "report.html"


def page_html(results: Results) -> str:
    """The self-contained page, whose content security policy blocks network access and all other scripts.

    Raises:
        SourceError: there is nothing to show.
        MissingExtraError: jinja2 is not installed.
    """
    if results.is_empty():
        msg = "there is no result to show"
        raise SourceError(msg)
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ModuleNotFoundError as missing:
        raise MissingExtraError.for_extra("report", "the report page") from missing  # noqa: EM101
    numbers = Numbers()
    data = page_data(results, numbers)
    script = bundle.script()
    environment = Environment(
        loader=FileSystemLoader(bundle.HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        title=_title(results),
        generator=FORMAT,
        style=bundle.styles(),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        data=as_script(data),
        numbers=numbers.text(),
        plotly=bundle.plotly(),
    )


def write_page(results: Results, file: str | Path, *, force: bool = False, inputs: Sequence[Path] = ()) -> Path:
    """Write the page, atomically.

    Args:
        results: the results to show.
        file: the file to write.
        force: replace an existing page.
        inputs: folders that the results were read from, which must not be changed.

    Raises:
        OutputError: the file exists and `force` is not given, or cannot be written.
        SourceError, MissingExtraError: see `page_html`.
    """
    file = Path(file)
    html = page_html(results)
    with atomic_file(file, force=force, inputs=inputs) as partial:
        partial.write_text(html, encoding="utf-8")
    return file


def page_data(results: Results, numbers: Numbers) -> dict[str, Any]:
    """All results as one JSON object; long lists of numbers are added to `numbers`.

    Raises:
        FileFormatError: a result lacks a field that the page shows.
    """
    pairs = results.comparisons
    matrices = [matrix for analysis in results.analyses.values() for matrix in analysis.matrices]
    exponent = exponent_of(max((matrix.spectrum.fro_norm for matrix in matrices), default=0.0))
    try:
        return {
            "version": __version__,
            "analyses": [
                analysis_data(analysis, title, numbers, exponent=exponent)
                for title, analysis in results.analyses.items()
            ],
            "trainings": [training_data(title, *parts, numbers) for title, parts in results.trainings.items()],
            "sweeps": [sweep_data(title, sweep) for title, sweep in results.sweeps.items()],
            "extractions": [extraction_data(title, each) for title, each in results.extractions.items()],
            "comparisons": [comparison_data(title, each) for title, each in pairs.items() if each["kind"] != "merge"],
            "merges": [merge_check_data(title, each) for title, each in pairs.items() if each["kind"] == "merge"],
        }
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as broken:
        msg = f"a result is damaged or of another version ({type(broken).__name__}: {broken}); write it again"
        raise FileFormatError(msg) from broken


def as_script(data: Any) -> str:
    """JSON that is safe inside a script element: it contains no end tag and no comment."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _title(results: Results) -> str:
    names = [*results.analyses, *results.trainings, *results.sweeps, *results.extractions, *results.comparisons]
    return ", ".join(dict.fromkeys(names))
