"""Run the labs and write each as a notebook and as a page that needs no network."""

import argparse
import os
import shutil
from pathlib import Path

import jupytext
import nbformat
from jinja2 import DictLoader
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

LABS = Path(__file__).resolve().parent
SECONDS = 300  # time limit of a lab


def main() -> None:
    """Build the named labs, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="such as lab2; default: all labs")
    parser.add_argument("-o", "--output", type=Path, default=LABS.parent / "build" / "labs")
    options = parser.parse_args()
    labs = sorted(LABS.glob("lab[0-9]*.py"))
    chosen = [lab for lab in labs if not options.names or lab.stem.startswith(tuple(options.names))]
    if not chosen:
        parser.error(f"unknown lab; choose from {', '.join(lab.stem for lab in labs)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices are small: more threads would only wait for each other
    options.output.mkdir(parents=True, exist_ok=True)
    shutil.copytree(LABS / "labkit", options.output / "labkit", dirs_exist_ok=True)  # the notebooks import it
    for lab in chosen:
        notebook = executed(lab)
        nbformat.write(notebook, options.output / f"{lab.stem}.ipynb")
        (options.output / f"{lab.stem}.html").write_text(page(notebook, labs), encoding="utf-8")
        print(f"{lab.stem}: notebook and page in {options.output}")


def executed(lab: Path) -> NotebookNode:
    """The lab as a notebook with its outputs; solutions are folded. A failed check or a warning stops the build."""
    notebook = jupytext.read(lab)
    for cell in notebook.cells:
        if "solution" in cell.metadata.get("tags", []):
            cell.metadata["jupyter"] = {"source_hidden": True, "outputs_hidden": True}
    resources = {"metadata": {"path": LABS}}
    arguments = ["--log-level=ERROR"]
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources=resources, extra_arguments=arguments
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    if warnings := "".join(output.text for output in outputs if output.get("name") == "stderr"):
        msg = f"{lab.stem} warned:\n{warnings}"
        raise SystemExit(msg)
    return notebook


def body(notebook: NotebookNode) -> str:
    """The cells as HTML, without a page around them."""
    template = (LABS / "labkit" / "cells.html.j2").read_text(encoding="utf-8")
    exporter = HTMLExporter(
        template_file="cells.html.j2",
        extra_loaders=[DictLoader({"cells.html.j2": template})],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    return exporter.from_notebook_node(notebook)[0]


def page(notebook: NotebookNode, labs: list[Path]) -> str:
    """A complete page, with links to the other labs."""
    parts = {
        "title": title(notebook),
        "links": "".join(
            f'<a href="{lab.stem}.html">{lab.stem[:4].capitalize().replace("b", "b ")}</a>' for lab in labs
        ),
        "colours": colours(),
        "body": body(notebook),
    }
    text = (LABS / "labkit" / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->", part, 1)
    return text


def title(notebook: NotebookNode) -> str:
    """The first heading."""
    texts = (cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return next(line[2:] for text in texts for line in text.splitlines() if line.startswith("# "))


def colours() -> str:
    """The styles of highlighted code, light and dark."""
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"


if __name__ == "__main__":
    main()
