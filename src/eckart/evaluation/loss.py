"""The loss of a language model on text, in nats per token."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eckart.errors import EckartError, NotFiniteError, OptionError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

MAX_LENGTH = 1024
_ROWS_AT_ONCE = 256  # of the logits, so that a large vocabulary is not held in float32 twice

WindowCallback = Callable[[int, int], None]
"""Called after every window with the windows done and the windows in all."""


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
    progress: WindowCallback | None = None,
) -> LossResult:
    """Mean loss of a causal language model on a text read in windows that do not overlap.

    A tokenizer that opens every text with a start token opens every window with it, as the model was
    trained to see; without one the first token of a window only serves to predict the second.

    Args:
        model: called as `model(input_ids=...)` and answering with `.logits`, as transformers' models do.
        text: a text, or token ids of shape `(tokens,)`, which are taken as they are.
        tokenizer: the model's; needed for a text only.
        max_length: tokens of a window, lowered to the model's own limit where its config states one.
        progress: called after every window.

    Returns:
        The mean over all predicted tokens, summed in float64.

    Raises:
        EckartError: nothing in the text can be predicted.
        NotFiniteError: the model answers with NaN or Inf.
        OptionError: a text without a tokenizer, or windows of less than two tokens.
    """
    ids, start = _token_ids(text, tokenizer)
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    length = max_length if limit is None else min(max_length, limit)
    if length < 2:
        msg = f"max_length must be 2 or more, so that a token has one before it; got {length}"
        raise OptionError(msg)
    windows = list(_windows(ids, start, length))
    if not windows:
        msg = f"the text has {len(ids)} tokens: a loss needs at least two, one to predict from the other"
        raise EckartError(msg)
    device = next(model.parameters()).device
    total, tokens = 0.0, 0
    for done, window in enumerate(windows, start=1):
        total += _summed_loss(model, window.to(device))
        tokens += len(window) - 1
        if progress is not None:
            progress(done, len(windows))
    if not total < float("inf"):
        msg = f"the model's loss is {total} after {tokens} tokens: its weights or activations are not finite"
        raise NotFiniteError(msg)
    return LossResult(nats_per_token=total / tokens, tokens=tokens)


def _token_ids(text: str | Tensor, tokenizer: "PreTrainedTokenizerBase | None") -> tuple[Tensor, list[int]]:
    """The ids of a text, and the start token that its tokenizer puts before every text, if it does."""
    if isinstance(text, Tensor):
        return text.reshape(-1), []
    if tokenizer is None:
        msg = "a text needs the model's tokenizer; give one, or give token ids"
        raise OptionError(msg)
    # verbose=False: a text longer than the model's window is cut into windows here, no reason to warn.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    opening = tokenizer("")["input_ids"][:1]
    return torch.tensor(ids, dtype=torch.int64), [token for token in opening if token == tokenizer.bos_token_id]


def _windows(ids: Tensor, start: list[int], length: int) -> Iterator[Tensor]:
    opening = torch.tensor(start, dtype=torch.int64)
    for first in itertools.count(0, length - len(start)):
        window = torch.cat([opening, ids[first : first + length - len(start)]])
        if len(window) == len(opening):
            return
        if len(window) > 1:
            yield window


def _summed_loss(model: "nn.Module", window: Tensor) -> float:
    logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
    total = 0.0
    for rows, targets in zip(logits.split(_ROWS_AT_ONCE), window[1:].split(_ROWS_AT_ONCE), strict=True):
        losses = torch.nn.functional.cross_entropy(rows.float(), targets, reduction="none")
        total += losses.double().sum().item()
    return total
