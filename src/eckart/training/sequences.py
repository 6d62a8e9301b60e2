"""Texts as training sequences: tokens packed end to end and cut to one length, nothing padded."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from eckart.errors import EckartError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def pack_texts(texts: Iterable[str], tokenizer: "PreTrainedTokenizerBase", *, length: int = 256) -> Tensor:
    """Tokenise texts, join them with the end-of-text token and cut the stream into equal sequences.

    Args:
        texts: documents, in the order in which they are joined.
        tokenizer: the model's tokenizer; its `eos_token_id`, where it has one, parts the documents.
        length: tokens of a sequence, at least 2.

    Returns:
        Token ids, int64, shape `(sequences, length)`; the last, incomplete piece of the stream is dropped.

    Raises:
        EckartError: the texts are too short for a single sequence.
    """
    separator = [] if tokenizer.eos_token_id is None else [cast("int", tokenizer.eos_token_id)]
    stream: list[int] = []
    for text in texts:
        # verbose=False: a document longer than the model's window is meant to be cut here, not warned about.
        stream += cast("list[int]", tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        stream += separator
    whole = len(stream) // length
    if whole == 0:
        msg = f"the training text has {len(stream)} tokens, less than one sequence of {length}: give more text"
        raise EckartError(msg)
    return torch.tensor(stream[: whole * length], dtype=torch.int64).view(whole, length)


def shuffled_batches(sequences: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches without end, shape `(batch_size, length)`; every sequence once before any comes again."""
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while len(waiting) < batch_size:
            waiting = torch.cat([waiting, torch.randperm(len(sequences), generator=generator)])
        yield sequences[waiting[:batch_size]]
        waiting = waiting[batch_size:]
