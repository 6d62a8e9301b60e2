"""The order of the packages: a package imports only packages before it in the list, and no import goes in a circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import eckart

SOURCE = Path(eckart.__file__).parent
ORDER = (
    "errors", "version", "result", "linalg", "engine", "checkpoint", "adapter", "formats", "operations", "nn",
    "evaluation", "training", "planning", "report", "demo", "cli", "__main__",
)  # fmt: skip
ALONE = {"reference"}  # the NumPy layer: code to read first, and what the others are tested against


def modules(source: Path) -> dict[str, Path]:
    """Every module of the package by its dotted name; of a package the stub, which says what it exports."""
    names = {path.relative_to(source.parent).with_suffix("").as_posix().replace("/", "."): path
             for path in sorted(source.rglob("*.py"))}  # fmt: skip
    stubs = {name: path.with_suffix(".pyi") for name, path in names.items() if path.with_suffix(".pyi").is_file()}
    return {name.removesuffix(".__init__"): path for name, path in (names | stubs).items()}


def imported_names(file: Path, package: str) -> Iterator[str]:
    """What a file imports anywhere: at its top, in a function, for type checking, or through importlib."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or file.suffix == ".pyi", f"{file} imports relatively"
            parts = [package] * node.level + [node.module] * (node.module is not None)
            yield from (".".join([*parts, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value)


def import_graph(source: Path) -> dict[str, set[str]]:
    """For each module the modules of the package that it imports."""
    known = modules(source)

    def module_of(name: str) -> str | None:
        while name and name not in known:
            name = name.rpartition(".")[0]
        return name or None

    return {name: {module for each in imported_names(path, name) if (module := module_of(each))}
            for name, path in known.items()}  # fmt: skip


def violations(source: Path) -> list[str]:
    """Imports that go up the order, of a package that has no place in it, or round in a circle."""
    graph, root = import_graph(source), source.name
    found = []
    for module, targets in graph.items():
        if module == root:
            continue  # the public names: lazy, and above everything
        package = module.split(".")[1]
        if package not in ORDER and package not in ALONE:
            found.append(f"{module}: {package} has no place in the order")
            continue
        allowed = {package, *(ORDER[: ORDER.index(package)] if package in ORDER else ())}
        for target in sorted(targets):
            above = target == root or target.split(".")[1] not in allowed
            if above:
                found.append(f"{module} imports {target}")
    return found + [f"circle: {' -> '.join(circle)}" for circle in circles(graph)]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One circle of imports for each module at which one closes."""
    found, done = [], set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            circle = path[path.index(module) :]
            first = circle.index(min(circle))
            found.append([*circle[first:], *circle[:first], circle[first]])
            return
        if module in done:
            return
        for target in sorted(graph[module]):
            visit(target, [*path, module])
        done.add(module)

    for module in graph:
        visit(module, [])
    return found


def test_imports_follow_the_order_and_never_go_in_a_circle() -> None:
    assert len(modules(SOURCE)) > 200
    assert violations(SOURCE) == []


def test_every_package_is_in_the_order() -> None:
    found = {path.name.removesuffix(".py") for path in SOURCE.iterdir()} - {
        "__init__",
        "__init__.pyi",
        "__pycache__",
        "py.typed",
    }
    assert found == {*ORDER, *ALONE}


PLANTED = [
    ("linalg/rank.py", "import eckart\n", "eckart.linalg.rank imports eckart"),
    ("linalg/rank.py", "from eckart import errors, adapter\n", "eckart.linalg.rank imports eckart.adapter"),
    ("adapter/value.py", "def save():\n    from eckart.formats.peft import write\n", "imports eckart.formats.peft"),
    ("adapter/value.py", "import importlib\nimportlib.import_module('eckart.formats')\n", "imports eckart.formats"),
    ("formats/peft.py", "from eckart.formats.kohya import a\n", "circle: eckart.formats.kohya"),
    ("formats/peft.py", "from eckart.formats import kohya\nfrom eckart.formats import x\n", "circle: eckart.formats"),
    ("errors.py", "import eckart.linalg.rank\n", "eckart.errors imports eckart.linalg.rank"),
    ("gadgets/thing.py", "", "gadgets has no place in the order"),
    ("reference/lora.py", "from eckart.errors import E\n", "eckart.reference.lora imports eckart.errors"),
]


@pytest.mark.parametrize(("file", "text", "message"), PLANTED)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, text: str, message: str) -> None:
    source = tmp_path / "eckart"
    tree = {
        "__init__.py": "", "errors.py": "", "adapter/__init__.py": "", "adapter/value.py": "",
        "formats/__init__.py": "from eckart.formats.peft import x\n", "formats/peft.py": "",
        "formats/kohya.py": "from eckart.formats.peft import b\n", "linalg/__init__.py": "", "linalg/rank.py": "",
        "reference/lora.py": "",
    }  # fmt: skip
    for name, content in tree.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(content)
    assert violations(source) == []
    (source / file).parent.mkdir(parents=True, exist_ok=True)
    (source / file).write_text(text)
    found = violations(source)
    assert found
    assert any(message in each for each in found)


def test_no_exported_name_hides_a_module_of_its_package() -> None:
    """`eckart.linalg.spectrum` would be a function or a module, depending on what was imported first."""
    known, stubs = modules(SOURCE), [path for path in modules(SOURCE).values() if path.suffix == ".pyi"]
    assert len(stubs) > 10
    for stub in stubs:
        package = stub.relative_to(SOURCE.parent).parent.as_posix().replace("/", ".")
        exported = {name.rpartition(".")[2] for name in imported_names(stub, package)}
        hidden = {name for name in exported if f"{package}.{name}" in known and package != "eckart"}
        assert hidden == set(), f"{package} exports {hidden}"
