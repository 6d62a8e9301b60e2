"""Inputs that every test of robustness copies."""

import os
import shutil
from pathlib import Path

import pytest

from .commands import WORDS, use_small_demo, write_inputs
from .harness import Harness


@pytest.fixture(scope="session")
def originals(tiny_folder, word_tokenizer, tmp_path_factory) -> Path:
    """The inputs of all commands."""
    model = shutil.copytree(tiny_folder("llama"), tmp_path_factory.mktemp("model") / "model")
    word_tokenizer(WORDS).save_pretrained(model)
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(model, folder)
    return folder


@pytest.fixture
def inputs(originals, tmp_path, monkeypatch) -> Path:
    """A copy of them, as the working folder."""
    folder = tmp_path / "work"
    shutil.copytree(originals, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def harness(originals, tmp_path_factory):
    """Commands in processes of their own."""
    harness = Harness(originals, tmp_path_factory.mktemp("runs"))
    yield harness
    harness.close()


@pytest.fixture(scope="session", autouse=True)
def _offline():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _small_demo(monkeypatch):
    import pydoc_data.topics

    from eckart import demo

    for module, name in (
        (pydoc_data.topics, "topics"),
        *((demo, f) for f in ("quick_settings", "quick_fine_tune", "run_demo")),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))  # restored afterwards
    use_small_demo()
