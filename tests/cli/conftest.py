"""A tiny language model on disk, a text that it can learn, and the width of what commands print."""

import shutil
from pathlib import Path

import pytest

import eckart.formats  # noqa: F401  # adapters are saved here

WORDS = ["the", "a", "rank", "of", "weight", "adapter", "low", "high", "noise", "signal", "learns", "is"]


@pytest.fixture
def model(tiny_folder, word_tokenizer, tmp_path) -> Path:
    """A tiny Llama with a tokenizer that knows a dozen words."""
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    word_tokenizer(WORDS).save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(WORDS[(i * i) % 11] for i in range(600)))
    return path


@pytest.fixture
def fits_80_columns(tmp_path_factory):
    """Text -> whether its lines fit, but for those with a path, which are never wrapped."""

    folder = str(tmp_path_factory.getbasetemp())

    def fits(text: str) -> bool:
        lengths = [len(line) for line in text.splitlines() if folder not in line]
        return bool(lengths) and max(lengths) <= 80

    return fits
