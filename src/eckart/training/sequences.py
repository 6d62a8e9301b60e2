"""Texts as training sequences: tokens joined and split into sequences of one length, without padding."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from eckart.errors import EckartError
from eckart.evaluation.model import token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def pack_texts(texts: Iterable[str], tokenizer: "PreTrainedTokenizerBase", *, length: int = 256) -> Tensor:
    """Tokenize texts, join them with the end-of-text token and split them into sequences of equal length.

    Args:
        texts: documents, in the order in which they are joined.
        tokenizer: the model's tokenizer; its `eos_token_id`, if it has one, separates the documents.
        length: tokens per sequence, at least 2.

    Returns:
        Token ids, int64, shape `(sequences, length)`; the incomplete last sequence is dropped.

    Raises:
        EckartError: the texts are too short for a single sequence.
    """
    separator = [] if tokenizer.eos_token_id is None else [cast("int", tokenizer.eos_token_id)]
    stream: list[int] = []
    for text in texts:
        stream += token_ids(text, tokenizer)
        stream += separator
    count = len(stream) // length
    if count == 0:
        msg = f"the training text has {len(stream)} tokens, less than one sequence of {length}: give more text"
        raise EckartError(msg)
    return torch.tensor(stream[: count * length], dtype=torch.int64).view(count, length)


def shuffled_batches(sequences: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches, shape `(batch_size, length)`; every sequence occurs once before any is repeated."""
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while len(waiting) < batch_size:
            waiting = torch.cat([waiting, torch.randperm(len(sequences), generator=generator)])
        yield sequences[waiting[:batch_size]]
        waiting = waiting[batch_size:]
