"""The order of the rooms: a package imports only packages before it in the list."""

import ast
from pathlib import Path

import pytest

import eckart

SOURCE = Path(eckart.__file__).parent
ORDER = (
    "errors", "linalg", "checkpoint", "engine", "adapter", "analysis", "nn",
    "evaluation", "training", "planning", "report", "demo", "cli", "reference",
)  # fmt: skip
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.stem in ORDER)


def rooms_imported(file: Path) -> set[str]:
    """The rooms that a file imports anywhere: at its top, in a function, or for type checking."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {module.split(".")[1] for module in modules if module.startswith("eckart.")}


def test_every_room_has_its_place_in_the_order() -> None:
    found = {path.name.removesuffix(".py") for path in SOURCE.iterdir() if not path.name.startswith("__")}
    assert found <= set(ORDER)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_a_room_imports_only_rooms_before_it(file: Path) -> None:
    room = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    allowed = {*ORDER[: ORDER.index(room) + 1]}
    if room == "reference":  # code to read first, and what the others are tested against
        allowed = {room}
    if room == "cli":
        allowed.add("__version__")
    assert rooms_imported(file) <= allowed
