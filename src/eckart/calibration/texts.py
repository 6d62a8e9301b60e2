"""Texts to calibrate with, as sequences of one length: some of each kind, and held-out ones to judge the result on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eckart.errors import EckartError
from eckart.training.data import DataOptions, load_data
from eckart.training.records import Source

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

LENGTH = 512
TOKENS = 12_288
HELD_OUT_TOKENS = 2_048
PARTS = 3  # of a single text, as if they were kinds


@dataclass(frozen=True)
class CalibrationText:
    """Token ids of texts.

    Attributes:
        kinds: shape `(sequences, length)` of each kind, by its name; calibration counts what holds for all of them.
        held_out: sequences of the same kinds that are not among them.
    """

    kinds: Mapping[str, Tensor]
    held_out: Mapping[str, Tensor]

    @property
    def tokens(self) -> int:
        """Number of tokens to calibrate with."""
        return sum(ids.numel() for ids in self.kinds.values())


def read_texts(
    sources: Sequence[Source],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    tokens: int = TOKENS,
    length: int = LENGTH,
) -> CalibrationText:
    """Sequences that are spread evenly over each source, and over its held-out tenth.

    Args:
        sources: one for each kind of text, in any form that training data may have; a single one is used as three.
        tokenizer: the model's tokenizer.
        tokens: to calibrate with, of all kinds together.
        length: tokens per sequence.

    Raises:
        SourceError, FileFormatError: a source cannot be read.
        EckartError: a source is too short.
    """
    options, data = DataOptions(max_length=length, answers_only=False), {}
    for number, source in enumerate(sources, start=1):
        name = str(source) if isinstance(source, (str, Path)) else f"text {number}"
        data[name if name not in data else f"{name} ({number})"] = load_data(source, tokenizer, options=options)
    joined = {name: (_joined(each.train), _joined(each.held_out)) for name, each in data.items()}
    for name, (train, held) in joined.items():
        length = min(length, len(train), len(held))
        if length < 2:
            msg = f"{name}: too short to calibrate with: {len(train):,} tokens and {len(held):,} held out"
            raise EckartError(msg)
    kinds = {name: _spread(train, tokens // len(sources), length) for name, (train, _) in joined.items()}
    held_out = {name: _spread(held, HELD_OUT_TOKENS // len(sources), length) for name, (_, held) in joined.items()}
    if len(kinds) == 1:
        ((name, ids),) = kinds.items()
        kinds = {f"{name}, part {n}": part for n, part in enumerate(ids.tensor_split(PARTS), start=1) if len(part)}
    return CalibrationText(kinds, held_out)


def _joined(data: "Dataset") -> Tensor:
    """All tokens of the records."""
    return torch.cat([torch.tensor(ids, dtype=torch.int64) for ids in data["input_ids"]])


def _spread(ids: Tensor, tokens: int, length: int) -> Tensor:
    """Evenly spaced sequences of joined records, shape `(sequences, length)`."""
    sequences = ids[: len(ids) // length * length].view(-1, length)
    count = min(len(sequences), max(1, tokens // length))
    return sequences[torch.linspace(0, len(sequences) - 1, count).round().long()]
