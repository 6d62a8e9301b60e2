"""The table of families, formats and operations in the documentation, made by running each operation.

`python -m tests.operations.family_table` writes it into the page.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from eckart.engine import Execution
from eckart.errors import EckartError
from eckart.formats.families.table import FAMILIES
from eckart.operations.conversion import convert
from eckart.operations.extraction.extract import extract
from eckart.operations.merging.merge import merge
from eckart.operations.resizing.resize import resize

from .families import component_folder, original_file, shapes
from .pipelines import adapter

PAGE = Path(__file__).parents[2] / "docs/how-to/images.md"
_BEGIN, _END = "<!-- families -->\n", "<!-- /families -->"
ONE = Execution(workers=1)


def _convert(to: str) -> Callable[[str, Path], None]:
    def run(family: str, folder: Path) -> None:
        written = convert(folder / "diffusers.safetensors", to, family=family).adapter
        back = convert(written, "diffusers", family=family).adapter
        assert set(back) == set(convert(folder / "diffusers.safetensors", "diffusers").adapter)

    return run


def _resize(family: str, folder: Path) -> None:
    for form in ("kohya", "comfyui", "diffusers"):
        resize(folder / f"{form}.safetensors", rank=1, execution=ONE)


def _merge(base: str) -> Callable[[str, Path], None]:
    def run(family: str, folder: Path) -> None:
        part = next(iter(shapes(family))).partition(".")[0]
        path = folder / base.format(part)
        out = folder / f"merged-{base.partition('/')[0].format(part)}"
        files = [folder / f"{form}.safetensors" for form in ("kohya", "comfyui", "diffusers")]
        merge(path, files, out.with_suffix(path.suffix), execution=ONE, force=True)

    return run


def _extract(family: str, folder: Path) -> None:
    path = folder / "tuned.safetensors"
    merge(folder / "single.safetensors", [folder / "kohya.safetensors"], path, execution=ONE)
    for to in ("kohya", "comfyui", "diffusers"):
        out = folder / f"extracted-{to}.safetensors"
        assert extract(folder / "single.safetensors", path, rank=1, to=to, family=family, output=out, execution=ONE)


COLUMNS: dict[str, Callable[[str, Path], None]] = {
    "kohya": _convert("kohya"),
    "ComfyUI": _convert("comfyui"),
    "diffusers": _convert("diffusers"),
    "PEFT": _convert("peft"),
    "resize": _resize,
    "merge: single file": _merge("single.safetensors"),
    "component": _merge("pipeline/{}"),
    "pipeline": _merge("pipeline"),
    "extract": _extract,
}


def _cell(run: Callable[[str, Path], None], family: str, folder: Path) -> str:
    try:
        run(family, folder)
    except EckartError as error:
        return str(error).splitlines()[0]
    return "yes"


def row(family: str) -> str:
    """The row of one family."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        there = adapter(shapes(family), scale=0.5)
        for form in ("kohya", "comfyui", "diffusers"):
            convert(there, form, family=family, output=folder / f"{form}.safetensors")
        component_folder(folder / "pipeline", family)
        original_file(
            folder / "single.safetensors", convert(there, "comfyui", family=family).adapter, "model.diffusion_model."
        )
        cells = [_cell(run, family, folder) for run in COLUMNS.values()]
    return f"| {FAMILIES[family].title} | `{family}` | {' | '.join(cells)} |"


def table() -> str:
    """The table, as Markdown."""
    head = ["Family", "`--family`", *COLUMNS]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *map(row, FAMILIES)]) + "\n"


def in_page() -> str:
    """The table as the page has it."""
    return PAGE.read_text().partition(_BEGIN)[2].partition(_END)[0]


if __name__ == "__main__":
    text = PAGE.read_text()
    before, _, rest = text.partition(_BEGIN)
    PAGE.write_text(f"{before}{_BEGIN}{table()}{_END}{rest.partition(_END)[2]}")
