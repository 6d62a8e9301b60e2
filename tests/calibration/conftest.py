"""The tiny model and text of the tests of evaluation."""

from tests.evaluation.conftest import text, tiny_llama

__all__ = ["text", "tiny_llama"]
