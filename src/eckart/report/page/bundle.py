"""The parts of a page that are the same for every result: style, scripts, and plotly.js.

The scripts are ES modules, so that editors and readers can follow imports. A page opened from disk cannot load modules,
so they are bundled here: each after the modules that it imports, without `import` lines and `export` keywords.
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
    """A module and everything it imports, as one immediately invoked function in strict mode.

    Args:
        main: name of the module, without `.js`.
        then: code that runs after it; in it `modules` contains the exports of each module.
    """
    order: list[str] = []
    _visit(main, order)
    body = "\n".join([*map(_as_function, order), then])
    return f'(() => {{\n"use strict";\nconst modules = {{}};\n{body}\n}})();\n'


@cache
def plotly() -> str:
    """plotly.js, deflated, as base64.

    This is its basic bundle (lines, bars, error bars) from npm's `plotly.js-basic-dist-min`: the full library is four
    times as large and takes a browser over a second to load.
    """
    return packed((HERE / "vendor" / "plotly-basic.min.js").read_bytes())


def _visit(name: str, order: list[str]) -> None:
    """Append a module after everything that it imports."""
    for _, needed in _IMPORT.findall(_source(name)):
        if needed not in order:
            _visit(needed, order)
    order.append(name)


def _as_function(name: str) -> str:
    """A module as an immediately invoked function that returns its exports."""
    source = _source(name)
    exports = ", ".join(exported for _, exported in _EXPORT.findall(source))
    body = _EXPORT.sub(r"\1", _IMPORT.sub(r"const \1 = modules.\2;", source))
    return f"modules.{name} = (() => {{\n{body}\nreturn {{ {exports} }};\n}})();\n"


@cache
def _source(name: str) -> str:
    return (HERE / "js" / f"{name}.js").read_text(encoding="utf-8")
