"""The loss of a language model on text, in nats per token."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eckart.engine.progress import NoProgress, Progress
from eckart.errors import EckartError, NotFiniteError, OptionError
from eckart.evaluation.model import opening_token, token_ids

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

MAX_LENGTH = 1024
_ROWS_AT_ONCE = 256  # rows of logits converted at a time, so that a large vocabulary is not in float32 twice


@dataclass(frozen=True)
class LossResult:
    """Mean cross-entropy in nats per predicted token, and how many tokens were predicted."""

    nats_per_token: float
    tokens: int


@torch.no_grad()
def text_loss(
    model: "nn.Module",
    text: str | Tensor,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    max_length: int = MAX_LENGTH,
    progress: Progress = NoProgress(),
    stage: str = "Loss",
) -> LossResult:
    """Mean loss of a causal language model on a text that is read in windows without overlap.

    If the tokenizer starts every text with a start token, every window starts with it, as in the model's
    training; otherwise the first token of a window only serves to predict the second.

    Args:
        model: called as `model(input_ids=...)` and returning `.logits`, as transformers' models do.
        text: a text, or token ids of shape `(tokens,)`, which are used as they are.
        tokenizer: the model's tokenizer; needed for a text only.
        max_length: tokens per window, lowered to the model's own limit if its config states one.
        progress: receives the windows.
        stage: name of this measurement for `progress`.

    Returns:
        The mean over all predicted tokens, summed in float64.

    Raises:
        EckartError: nothing in the text can be predicted.
        NotFiniteError: the model returns NaN or Inf.
        OptionError: a text without a tokenizer, or windows of fewer than two tokens.
    """
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    windows = text_windows(text, tokenizer, max_length if limit is None else min(max_length, limit))
    device = next(model.parameters()).device
    total, tokens = 0.0, 0
    progress.start(stage, len(windows), "windows")
    try:
        for window in windows:
            total += summed_loss(model, window.to(device))
            tokens += len(window) - 1
            progress.update(1, f"{total / tokens:.4f} nats per token")
    finally:
        progress.finish()
    if not total < float("inf"):
        msg = f"the model returned NaN or Inf: its loss is {total} after {tokens} tokens"
        raise NotFiniteError(msg)
    return LossResult(nats_per_token=total / tokens, tokens=tokens)


def text_windows(text: str | Tensor, tokenizer: "PreTrainedTokenizerBase | None", length: int) -> list[Tensor]:
    """A text, or token ids, in windows of `length` tokens without overlap; errors as of `text_loss`."""
    ids, start = _token_ids(text, tokenizer)
    if length < 2:
        msg = f"`max_length` must be at least 2, so that a token has one before it; got {length}"
        raise OptionError(msg)
    windows = list(_windows(ids, start, length))
    if not windows:
        msg = f"the text has {len(ids)} tokens: a loss needs at least two, to predict one from the other"
        raise EckartError(msg)
    return windows


def _token_ids(text: str | Tensor, tokenizer: "PreTrainedTokenizerBase | None") -> tuple[Tensor, list[int]]:
    """The ids of a text, and the start token if its tokenizer puts one before every text."""
    if isinstance(text, Tensor):
        return text.reshape(-1), []
    if tokenizer is None:
        msg = "a text needs the model's tokenizer; pass `tokenizer`, or token ids instead of a text"
        raise OptionError(msg)
    return torch.tensor(token_ids(text, tokenizer), dtype=torch.int64), opening_token(tokenizer)


def _windows(ids: Tensor, start: list[int], length: int) -> Iterator[Tensor]:
    opening = torch.tensor(start, dtype=torch.int64)
    for first in itertools.count(0, length - len(start)):
        window = torch.cat([opening, ids[first : first + length - len(start)]])
        if len(window) == len(opening):
            return
        if len(window) > 1:
            yield window


def summed_loss(model: "nn.Module", window: Tensor) -> float:
    """The losses of all tokens of a window but the first, token ids of shape `(length,)`, added in float64."""
    logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
    total = 0.0
    for rows, targets in zip(logits.split(_ROWS_AT_ONCE), window[1:].split(_ROWS_AT_ONCE), strict=True):
        losses = torch.nn.functional.cross_entropy(rows.float(), targets, reduction="none")
        total += losses.double().sum().item()
    return total
