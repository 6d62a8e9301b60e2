"""Rendering data as a page: one HTML file with its styles and scripts, which needs no network."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from eckart.checkpoint.manifest import FORMAT
from eckart.errors import MissingExtraError
from eckart.report.page import bundle
from eckart.report.page.numbers import Numbers
from eckart.version import __version__

Sections = Mapping[str, Sequence[dict[str, Any]]]
"""What a page shows, by kind of result; each entry is made by the module of that kind, such as `page.analysis`."""

KINDS = ("analyses", "trainings", "sweeps", "extractions", "comparisons", "merges")


def rendered(sections: Sections, numbers: Numbers, *, title: str) -> str:
    """The self-contained page, whose content security policy blocks network access and all other scripts.

    Args:
        sections: what to show; kinds that are missing have no entry.
        numbers: the block of numbers that the sections refer to.
        title: of the page.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ModuleNotFoundError as missing:
        raise MissingExtraError.for_extra("report", "the report page") from missing  # noqa: EM101
    data = {"version": __version__, **{kind: sections.get(kind, ()) for kind in KINDS}}
    script = bundle.script()
    environment = Environment(
        loader=FileSystemLoader(bundle.HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        generator=FORMAT,
        style=bundle.styles(),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        data=as_script(data),
        numbers=numbers.text(),
        plotly=bundle.plotly(),
    )


def as_script(data: Any) -> str:
    """JSON that is safe inside a script element: it contains no end tag and no comment."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
