"""Held-out sequences to measure models on, and the losses of a model on each part of them.

Models are compared on the same parts, so that differences between them can be resampled in pairs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from eckart.engine.progress import NoProgress, Progress
from eckart.errors import EckartError, NotFiniteError
from eckart.evaluation.loss import text_windows

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token that does not count
PART_TOKENS = 256  # a long text is resampled in parts of this many tokens
PASSAGE_TOKENS = 32  # of texts that are compared word for word
ROWS_AT_ONCE = 128  # rows of logits in float32 at a time

Predict = Callable[[Tensor], Tensor]
"""Logits of shape `(1, length, vocabulary)` from token ids of shape `(1, length)`."""


@dataclass(frozen=True)
class HeldOut:
    """Sequences that no model was trained on.

    Attributes:
        sequences: token ids of each.
        labels: the same, with −100 for tokens whose loss does not count; the first never counts.
        is_text: whether the sequences are windows of texts, which are resampled in parts of 256 tokens; otherwise each
            sequence is a record, and one part.
        notes: what the user should know about the data.
    """

    sequences: Sequence[Sequence[int]]
    labels: Sequence[Sequence[int]]
    is_text: bool = True
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse data without a token to predict."""
        if not self.tokens:
            count = sum(map(len, self.sequences))
            msg = f"the text has {count} tokens: a loss needs at least two, to predict one from the other"
            raise EckartError(msg)

    @cached_property
    def part_of(self) -> Tensor:
        """The part that each counted token belongs to, in order, shape `(tokens,)`."""
        parts, last = [], -1
        for labels in self.labels:
            count = sum(label != IGNORED for label in labels[1:])
            if not count:
                continue
            size = PART_TOKENS if self.is_text else count
            parts.append(last + 1 + torch.arange(count) // size)
            last = int(parts[-1][-1])
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    @cached_property
    def counts(self) -> Tensor:
        """Number of counted tokens in each part, float64."""
        return torch.bincount(self.part_of).double()

    @property
    def tokens(self) -> int:
        """Number of tokens that count."""
        return len(self.part_of)

    def halves(self) -> "tuple[HeldOut, HeldOut]":
        """The first and the second half of the sequences; where there is only one, of that one."""
        sequences, labels = self.sequences, self.labels
        if len(sequences) == 1:
            middle = len(sequences[0]) // 2
            sequences = sequences[0][:middle], sequences[0][middle:]
            labels = labels[0][:middle], labels[0][middle:]
        middle = len(sequences) // 2
        parts = ((sequences[:middle], labels[:middle]), (sequences[middle:], labels[middle:]))
        first, second = (HeldOut(ids, targets, self.is_text) for ids, targets in parts)
        return first, second

    def overlap(self, trained_on: Iterable[Sequence[int]], *, length: int = PASSAGE_TOKENS) -> int:
        """How many of the sequences occur in others, word for word: a record as it is, a text by all of its tokens.

        Args:
            trained_on: other sequences; texts in long ones, so that passages are found at any offset.
            length: tokens of the passages by which texts are compared. The first token of a sequence is left out: it
                may be a start token.

        Returns:
            The number of sequences that are records of `trained_on`, or all of whose passages are in it.
        """
        if not self.is_text:
            wanted = set(map(tuple, self.sequences))
            known = {ids for ids in map(tuple, trained_on) if ids in wanted}
            return sum(tuple(ids) in known for ids in self.sequences)
        passages = [
            [tuple(ids[start : start + length]) for start in range(1, len(ids) - length + 1, length)]
            for ids in self.sequences
        ]
        wanted = {passage for each in passages for passage in each}
        codes = _codes([token for passage in wanted for token in passage], length)[::length]
        known = set()
        for ids in trained_on:
            for start in np.flatnonzero(np.isin(_codes(ids, length), codes)):
                known.add(tuple(ids[start : start + length]))
        return sum(bool(each) and known.issuperset(each) for each in passages)


def _codes(ids: Sequence[int], length: int) -> "np.ndarray":
    """A code of the passage that begins at each token, equal for equal passages, shape `(tokens − length + 1,)`."""
    if len(ids) < length:
        return np.empty(0, dtype=np.uint64)
    powers = np.cumprod(np.full(length, 0x9E3779B97F4A7C15, dtype=np.uint64))
    return np.lib.stride_tricks.sliding_window_view(np.asarray(ids, dtype=np.uint64), length) @ powers


def windows_of(text: str, tokenizer: "PreTrainedTokenizerBase | None", *, length: int) -> HeldOut:
    """A text in windows of `length` tokens without overlap, each with the start token if the tokenizer has one.

    Raises:
        EckartError: nothing in the text can be predicted.
        OptionError: there is no tokenizer, or windows would have fewer than two tokens.
    """
    windows = [window.tolist() for window in text_windows(text, tokenizer, length)]
    return HeldOut(windows, windows)


@torch.no_grad()
def losses_of(
    model: "nn.Module | Predict",
    held_out: HeldOut,
    *,
    teacher: Predict | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = NoProgress(),
    stage: str = "Loss",
) -> Tensor:
    """Loss of a causal language model on each part of held-out data, or its divergence from a teacher there.

    Args:
        model: called as `model(input_ids=...)` and returning `.logits`, as transformers' models do; or a `Predict`.
        held_out: what to predict.
        teacher: measure KL(teacher ‖ model) over the complete vocabulary instead of the cross-entropy.
        device: of the model.
        progress: receives the sequences.
        stage: name of this measurement for `progress`.

    Returns:
        The sum over the counted tokens of each part, in nats, float64, shape `(parts,)`.

    Raises:
        NotFiniteError: the model returns NaN or Inf.
    """
    predict = predictions(model) if isinstance(model, torch.nn.Module) else model
    values, total, done = [], 0.0, 0
    progress.start(stage, len(held_out.sequences), "windows")
    try:
        for ids, labels in zip(held_out.sequences, held_out.labels, strict=True):
            targets = torch.tensor(labels[1:], device=device)
            counted = targets != IGNORED
            window = torch.tensor(ids, device=device)[None]
            if counted.any():
                logits = predict(window)[0, :-1][counted]
                goal = None if teacher is None else teacher(window)[0, :-1][counted]
                values.append(_by_token(logits, targets[counted], goal))
                total, done = total + float(values[-1].sum()), done + len(values[-1])
            progress.update(1, f"{total / max(done, 1):.4f} nats per token")
    finally:
        progress.finish()
    if not abs(total) < float("inf"):
        msg = f"the model returned NaN or Inf: its loss is {total} after {done} tokens"
        raise NotFiniteError(msg)
    return torch.zeros_like(held_out.counts).index_add_(0, held_out.part_of, torch.cat(values))


def predictions(model: "nn.Module") -> Predict:
    """The logits of a model, as a function of token ids."""
    return lambda ids: model(input_ids=ids, use_cache=False).logits


def _by_token(logits: Tensor, targets: Tensor, goal: Tensor | None) -> Tensor:
    """The loss of each token, or the divergence from the teacher's logits, float64 on the CPU."""
    parts = []
    for start in range(0, len(logits), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        log_q = logits[rows].float().log_softmax(-1)
        if goal is None:
            parts.append(-log_q.gather(-1, targets[rows, None])[:, 0])
        else:
            log_p = goal[rows].float().log_softmax(-1)
            parts.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(parts).double().cpu()
