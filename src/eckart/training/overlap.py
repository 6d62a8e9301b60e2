"""Held-out sequences that are in training data, word for word: what is measured on them is no evidence."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from eckart.evaluation.held_out import PASSAGE_TOKENS, HeldOut
from eckart.evaluation.model import opening_token

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

ROWS_AT_ONCE = 1000


def overlap(held_out: HeldOut, train: "Dataset", tokenizer: "PreTrainedTokenizerBase") -> int:
    """How many held-out sequences are in the training data; see `HeldOut.overlap`."""
    if held_out.is_text:
        return held_out.overlap(_streams(train, len(opening_token(tokenizer))))
    return held_out.overlap(row["input_ids"] for row in map(dict, train))


def overlapping(count: int, total: int, where: str) -> str:
    """The note about sequences that are in other data."""
    return f"{count} of {total} held-out sequences are in {where}: what is measured on them is no evidence"


def _streams(windows: "Dataset", opening: int) -> Iterator[Sequence[int]]:
    """The tokens of many windows together, which begin with the last ones of those before."""
    last: list[int] = []
    for rows in map(dict, windows.iter(ROWS_AT_ONCE)):
        stream = last + [token for ids in rows["input_ids"] for token in ids[opening:]]
        last = stream[1 - PASSAGE_TOKENS :]
        yield stream
