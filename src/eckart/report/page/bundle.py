"""The parts of a page that are the same for every result: style, scripts, and plotly.js.

The scripts are ES modules, so that editors and readers know what each takes from which. A page from disk cannot load
modules, so they are put together here: in an order in which each one follows what it imports, with the import lines
and the word `export` taken away.
"""

import re
from functools import cache
from pathlib import Path

from eckart.report.page.numbers import packed

HERE = Path(__file__).parent
_IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./([\w-]+)\.js";$', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?(?:function|class|const) (\w+))", re.MULTILINE)


def styles() -> str:
    """The style sheets, in the order of their names."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((HERE / "css").glob("*.css")))


def script(main: str = "main", *, then: str = "") -> str:
    """A module and all that it imports, as one strict function that runs at once.

    Args:
        main: name of the module, without `.js`.
        then: code that runs after it, for which `modules` holds what each one exports.
    """
    order: list[str] = []
    _visit(main, order)
    body = "\n".join([*map(_as_function, order), then])
    return f'(() => {{\n"use strict";\nconst modules = {{}};\n{body}\n}})();\n'


@cache
def plotly() -> str:
    """plotly.js, deflated, as base64.

    Its basic bundle (lines, bars, error bars), as npm's `plotly.js-basic-dist-min` carries it: the whole library is
    four times as large and takes a browser over a second to start.
    """
    return packed((HERE / "vendor" / "plotly-basic.min.js").read_bytes())


def _visit(name: str, order: list[str]) -> None:
    """Append a module after everything that it imports."""
    for _, needed in _IMPORT.findall(_source(name)):
        if needed not in order:
            _visit(needed, order)
    order.append(name)


def _as_function(name: str) -> str:
    """A module as a function that runs at once and returns its exports."""
    source = _source(name)
    exports = ", ".join(exported for _, exported in _EXPORT.findall(source))
    body = _EXPORT.sub(r"\1", _IMPORT.sub(r"const \1 = modules.\2;", source))
    return f"modules.{name} = (() => {{\n{body}\nreturn {{ {exports} }};\n}})();\n"


@cache
def _source(name: str) -> str:
    return (HERE / "js" / f"{name}.js").read_text(encoding="utf-8")
