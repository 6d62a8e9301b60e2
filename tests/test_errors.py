"""Errors: one family, all faults at once, and a remedy that works."""

from importlib import metadata
from pathlib import Path

import pytest

import eckart
from eckart import errors
from eckart.errors import EckartError, MissingExtraError, NotFiniteError, OptionError


@pytest.mark.parametrize("kind", [OptionError, NotFiniteError])
def test_an_invalid_value_is_an_eckart_error_and_a_value_error(kind):
    assert issubclass(kind, EckartError)
    assert issubclass(kind, ValueError)


def test_faults_beyond_those_shown_are_counted():
    error = OptionError.listing("invalid options", [f"fault {number}" for number in range(5)], shown=3)
    assert str(error).splitlines() == ["invalid options", "  - fault 0", "  - fault 1", "  - fault 2", "  - and 2 more"]


DECLARED = [
    "torch>=2.6",
    'matplotlib>=3.9; extra == "report"',
    'jinja2>=3.1; extra == "report"',
    'gguf>=0.17; extra == "gguf"',
    'eckart[gguf,report]; extra == "demo"',
]


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("report", "pip install 'jinja2>=3.1' 'matplotlib>=3.9'"),
        ("demo", "pip install 'gguf>=0.17' 'jinja2>=3.1' 'matplotlib>=3.9'"),
    ],
)
def test_a_missing_extra_is_installed_by_the_names_of_its_libraries(monkeypatch, extra, command):
    monkeypatch.setattr(errors.metadata, "requires", lambda name: DECLARED)
    assert str(MissingExtraError.for_extra(extra, "the page")) == f"the page needs the '{extra}' extra: {command}"


def test_a_checkout_without_metadata_is_installed_by_its_path(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(errors.metadata, "requires", missing)
    checkout = Path(eckart.__file__).parents[2]
    assert str(MissingExtraError.for_extra("report", "the page")).endswith(f"pip install '{checkout}[report]'")
