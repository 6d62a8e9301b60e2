"""The order of the packages, their class names, and the language of their messages."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import eckart

SOURCE = Path(eckart.__file__).parent
ORDER = (
    "errors", "version", "result", "linalg", "engine", "checkpoint", "adapter", "formats", "operations", "nn",
    "evaluation", "training", "calibration", "planning", "report", "demo", "cli", "__main__",
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
        "schemas",
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


def repeated_class_names(source: Path) -> dict[str, list[str]]:
    """Class names that more than one module defines, with these modules."""
    places = defaultdict(list)
    for path in sorted(source.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(path.relative_to(source).as_posix())
    assert places, f"{source} defines no class"
    return {name: files for name, files in places.items() if len(files) > 1}


def test_every_class_name_is_used_once() -> None:
    assert repeated_class_names(SOURCE) == {}


def test_a_planted_second_class_of_one_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "nn").mkdir()
    (tmp_path / "plan.py").write_text("class Plan: ...\nclass Other: ...\n")
    (tmp_path / "nn" / "thing.py").write_text("x = 1\nclass Plan: ...\n")
    assert repeated_class_names(tmp_path) == {"Plan": ["nn/thing.py", "plan.py"]}


FLAG = re.compile(r"(^|[^\w-])--[a-z]")
BUILDS_COMMANDS = {  # functions and constants that are a command to copy or to run
    "demo/package.py": {"INSTALL", "install_model_package"},
    "operations/checking/remedies.py": {"command"},
    "planning/advice.py": {"_LAUNCH", "command"},
    "report/tables/comparison.py": {"comparison_table"},
}


def defined_name(node: ast.AST) -> str | None:
    """Name of a function, or of the constant that an assignment defines."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return node.name if isinstance(node, ast.FunctionDef) else None


def docstrings(tree: ast.AST) -> set[int]:
    """Identities of the constants that stand alone as a statement."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def flags_in_texts(source: Path) -> list[str]:
    """Texts outside the command line that name one of its flags, except where a command is built."""
    found = []
    for path in sorted(source.rglob("*.py")):
        file = path.relative_to(source).as_posix()
        if file.startswith("cli/"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        commands = [node for node in ast.walk(tree) if defined_name(node) in BUILDS_COMMANDS.get(file, ())]
        allowed = {id(child) for node in commands for child in ast.walk(node)} | docstrings(tree)
        found += [f"{file}:{node.lineno}: {node.value}" for node in ast.walk(tree)
                  if isinstance(node, ast.Constant) and isinstance(node.value, str)
                  and FLAG.search(node.value) and id(node) not in allowed]  # fmt: skip
    return found


def test_no_text_of_the_library_names_a_flag_of_the_command_line() -> None:
    assert flags_in_texts(SOURCE) == []


@pytest.mark.parametrize(
    "code",
    [
        'raise ValueError("--rank must be at least 1")',
        'msg = f"{name}: use --force to replace it"',
        'progress.note("with --full every value is computed")',
        'skipped = Skipped(name, "excluded (--exclude)")',
    ],
)
def test_a_planted_flag_in_a_text_is_found(tmp_path: Path, code: str) -> None:
    (tmp_path / "cli").mkdir()
    (tmp_path / "cli" / "merge.py").write_text(code)
    (tmp_path / "merge.py").write_text('"""The result of `--dry-run`."""\nmsg = "`rank` must be a-b--c"\n')
    assert flags_in_texts(tmp_path) == []
    (tmp_path / "merge.py").write_text(code)
    assert len(flags_in_texts(tmp_path)) == 1
