"""What the tests of training share: a tiny model on disk and a text that it can learn."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from .tiny import words, write_tiny_llama


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tokenizer(tiny: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(tiny)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 words in one file."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(words(2000))
    return path
