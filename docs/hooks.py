"""What the site takes from the code when it is built: options of commands, exported names, and the executed labs.

In a page, `<!-- options extract -->` becomes the table of a command's options and `<!-- names eckart.linalg -->` the
documentation of everything that a package exports.
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
CONSOLE = re.compile(r'(<div class="language-console highlight")>(.*?)</div>', re.DOTALL)
PROMPT_OR_OUTPUT = re.compile(r'<span class="g[po]">.*?</span>', re.DOTALL)
NOT_RUN = (
    '<div class="admonition note"><p class="admonition-title">Without results</p>'
    "<p>This lab was not executed before the site was built. Run <code>python labs/build.py {stem}</code> and build "
    "the site again.</p></div>"
)


def on_files(files: Files, config: "MkDocsConfig") -> Files:
    """A page and a downloadable notebook for each lab."""
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
    """Replace the placeholders by tables and documentation from the code."""
    markdown = re.sub(r"<!-- options (\w+) -->", lambda match: options_table(match[1]), markdown)
    markdown = re.sub(r"<!-- names ([\w.]+) -->", lambda match: names(match[1]), markdown)
    return re.sub(r"<!-- labs -->", lambda match: _lab_list(), markdown)


def on_page_content(content: str, page: Page, **_: object) -> str:
    """Give console blocks a text to copy, and a lab's page its cells."""
    lab = LABS / f"{Path(page.file.src_uri).stem}.py"
    if page.file.src_uri.startswith("labs/lab") and lab.exists():
        return _lab_page(lab, page)
    return CONSOLE.sub(_with_copied_text, content)


def _with_copied_text(block: re.Match[str]) -> str:
    """A console block whose copy button takes the commands, without prompts and output."""
    commands = _plain(PROMPT_OR_OUTPUT.sub("", block[2]))
    lines = "\n".join(line for line in commands.splitlines() if line.strip())
    return f'{block[1]} data-copy="{html.escape(lines)}">{block[2]}</div>'


def _lab_page(lab: Path, page: Page) -> str:
    executed = BUILT / f"{lab.stem}.ipynb"
    notebook = nbformat.read(executed, as_version=4) if executed.exists() else jupytext.read(lab)
    body = _labs_build().body(notebook)
    headings = HEADING.findall(body)
    page.toc = get_toc([{"level": 2, "id": name, "name": _plain(text), "children": []} for _, name, text in headings])
    if not executed.exists():
        return f"{NOT_RUN.format(stem=lab.stem)}{body}"
    return (
        f'<p><a href="{lab.stem}.ipynb" download>Download this lab as a notebook</a></p><div class="lab">{body}</div>'
    )


def options_table(command: str) -> str:
    """The arguments and options of a command, with the texts of its help."""
    import typer.main

    from eckart.cli.main import app

    rows = []
    for option in typer.main.get_command(app).commands[command].params:  # type: ignore[attr-defined]
        if getattr(option, "hidden", False):
            continue
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
    """Text escaped for HTML and for a Markdown table."""
    return html.escape(text, quote=False).replace("|", "&#124;").replace("*", "&#42;")


def names(package: str) -> str:
    """The documentation of every name that a package exports, or that a module without exports defines."""
    path = ROOT / "src" / Path(*package.split("."))
    return "\n\n".join(f"::: {package}.{name}" for name in _exports(path) or _defined(path))


def _exports(path: Path) -> list[str]:
    """What the stub of a lazy package imports, or the `__all__` of another one."""
    stub, init = path / "__init__.pyi", path / "__init__.py"
    if stub.exists():
        return [alias.name for node in _tree(stub) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assigned = [node for node in _tree(init) if isinstance(node, ast.Assign)] if init.exists() else []
    values = [node.value for node in assigned if getattr(node.targets[0], "id", "") == "__all__"]
    return [name for value in values for name in ast.literal_eval(value)]


def _defined(path: Path) -> list[str]:
    """The public classes and functions of a module."""
    definitions = [node for node in _tree(path.with_suffix(".py")) if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return [node.name for node in definitions if not node.name.startswith("_")]


def _tree(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text(encoding="utf-8")).body


def _labs() -> list[Path]:
    return sorted(LABS.glob("lab[0-9]*.py"))


def _lab_list() -> str:
    build = _labs_build()
    return "\n".join(f"- [{build.title(jupytext.read(lab))}]({lab.stem}.md)" for lab in _labs())


def _labs_build() -> ModuleType:
    """`labs/build.py`, which renders the cells of a notebook as HTML."""
    spec = importlib.util.spec_from_file_location("labs_build", LABS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _plain(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", markup)).replace("¶", "").strip()
