"""What the site takes from the code when it is built: options of commands, names of rooms, and the labs as they ran.

In a page, `<!-- options extract -->` becomes the table of a command's options and `<!-- names eckart.linalg -->` the
documentation of all that a room makes public.
"""

import ast
import html
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import jupytext
import nbformat
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page
from mkdocs.structure.toc import get_toc

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

ROOT = Path(__file__).resolve().parent.parent
LABS, BUILT = ROOT / "labs", ROOT / "build" / "labs"
HEADING = re.compile(r'<h([23]) id="([^"]+)">(.*?)</h\1>', re.DOTALL)
NOT_RUN = (
    '<div class="admonition note"><p class="admonition-title">Not run yet</p>'
    "<p>This site was built before it ran. <code>python labs/build.py {stem}</code>, then build the site again.</p>"
    "</div>"
)


def on_files(files: Files, config: "MkDocsConfig") -> Files:
    """A page and a notebook to take away for each lab."""
    for lab in _labs():
        name = f"labs/{lab.stem}"
        title = _labs_build().title(jupytext.read(lab))
        files.append(File.generated(config, f"{name}.md", content=f"# {title}\n"))
        notebook = BUILT / f"{lab.stem}.ipynb"
        if notebook.exists():
            files.append(File.generated(config, f"{name}.ipynb", abs_src_path=str(notebook)))
    return files


def on_nav(nav: Navigation, config: "MkDocsConfig", files: Files) -> Navigation:
    """The labs' pages below their overview."""
    section = next(item for item in nav.items if isinstance(item, Section) and item.title == "Labs")
    for lab in _labs():
        file = files.get_file_from_path(f"labs/{lab.stem}.md")
        page = (file and file.page) or Page(None, file, config)
        page.parent = section
        section.children.append(page)
        nav.pages.insert(nav.pages.index(section.children[-2]) + 1, page)
    for before, after in zip([None, *nav.pages], [*nav.pages, None], strict=True):
        if before:
            before.next_page = after
        if after:
            after.previous_page = before
    return nav


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Fill in what comes from the code."""
    markdown = re.sub(r"<!-- options (\w+) -->", lambda match: options_table(match[1]), markdown)
    markdown = re.sub(r"<!-- names ([\w.]+) -->", lambda match: names(match[1]), markdown)
    return re.sub(r"<!-- labs -->", lambda match: _lab_list(), markdown)


def on_page_content(content: str, page: Page, **_: object) -> str:
    """The cells of a lab, in the place of its empty page."""
    lab = LABS / f"{Path(page.file.src_uri).stem}.py"
    if not page.file.src_uri.startswith("labs/lab") or not lab.exists():
        return content
    executed = BUILT / f"{lab.stem}.ipynb"
    notebook = nbformat.read(executed, as_version=4) if executed.exists() else jupytext.read(lab)
    body = _labs_build().body(notebook)
    found = HEADING.findall(body)
    page.toc = get_toc([{"level": 2, "id": name, "name": _plain(text), "children": []} for _, name, text in found])
    if not executed.exists():
        return f"{NOT_RUN.format(stem=lab.stem)}{body}"
    return f'<p><a href="{lab.stem}.ipynb" download>Take this lab as a notebook</a></p><div class="lab">{body}</div>'


def options_table(command: str) -> str:
    """The arguments and options of a command, as its help tells them."""
    import typer.main

    from eckart.cli.main import app

    found = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    rows = []
    for option in found.params:
        argument = option.param_type_name == "argument"
        name = option.metavar or option.name.upper() if argument else ", ".join(f"`{name}`" for name in option.opts)
        # A flag takes no value.
        value = "" if argument or option.is_flag or not option.metavar else f" <code>{_cell(option.metavar)}</code>"
        text = _cell(option.help or "").replace("[default: ", "[by default ")
        rows.append(f"| {f'`{name}`' if argument else name}{value} | {text} |")
    return "\n".join(
        ["| Option | What it does |", "|---|---|", *rows, "| `--help`, `-h` | Show this message and exit. |"]
    )


def _cell(text: str) -> str:
    """Text that neither HTML nor a Markdown table takes for its own."""
    return html.escape(text, quote=False).replace("|", "&#124;").replace("*", "&#42;")


def names(room: str) -> str:
    """The documentation of every name in a room's `__all__`, or of a module that has none."""
    path = ROOT / "src" / Path(*room.split("."))
    tree = ast.parse(((path / "__init__.py") if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8"))
    public = next(
        (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        ),
        [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_"],
    )
    return "\n\n".join(f"::: {room}.{name}" for name in public)


def _labs() -> list[Path]:
    return sorted(LABS.glob("lab[0-9]*.py"))


def _lab_list() -> str:
    build = _labs_build()
    return "\n".join(f"- [{build.title(jupytext.read(lab))}]({lab.stem}.md)" for lab in _labs())


def _labs_build() -> ModuleType:
    """`labs/build.py`, which makes the cells of a notebook into HTML."""
    spec = importlib.util.spec_from_file_location("labs_build", LABS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _plain(markup: str) -> str:
    return re.sub(r"<[^>]+>", "", markup).replace("&amp;", "&").replace("¶", "").strip()
