"""The benchmark and the labs import only names that eckart has; neither runs in full in the tests."""

import ast
import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [*sorted((ROOT / "bench").glob("*.py")), *sorted((ROOT / "labs").glob("*.py"))]


def missing(module: str, name: str) -> bool:
    return not hasattr(importlib.import_module(module), name) and find_spec(f"{module}.{name}") is None


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_name_imported_from_eckart_exists(file):
    imports = [
        node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
    ]
    names = [(node.module or "", alias.name) for node in imports for alias in node.names]
    assert [pair for pair in names if pair[0].split(".")[0] == "eckart" and missing(*pair)] == []
