"""The tiny model and text of the tests of evaluation, and two texts to calibrate with."""

import pytest

from tests.evaluation.conftest import text, tiny_llama

__all__ = ["text", "tiny_llama"]


@pytest.fixture
def texts(tmp_path, text) -> list[str]:
    words = text.split()
    for number in range(2):
        (tmp_path / f"text{number}.txt").write_text(" ".join(words[number::2] * 12))
    return [str(tmp_path / f"text{number}.txt") for number in range(2)]
