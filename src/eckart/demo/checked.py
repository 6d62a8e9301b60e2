"""Whether a merged model answers as its base with the adapter does: the check after every merge."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Agreement:
    """How two models answer the same text.

    Attributes:
        same_token: share of positions at which both hold the same next token likeliest.
        divergence: mean KL(first ‖ second) of the next token, nats.
        largest: largest difference of a log-probability that the first gives at least one in a thousand.
        positions: compared.
    """

    same_token: float
    divergence: float
    largest: float
    positions: int


@torch.no_grad()
def log_probabilities(model: "nn.Module", ids: Tensor) -> Tensor:
    """What a causal language model expects after every token: float32 `(tokens, vocabulary)`, of ids `(tokens,)`."""
    return model(input_ids=ids[None], use_cache=False).logits[0].float().log_softmax(-1)


def agreement(first: Tensor, second: Tensor) -> Agreement:
    """Compare two answers of `log_probabilities`, shapes `(tokens, vocabulary)`."""
    likely = first > torch.tensor(1e-3).log()
    return Agreement(
        same_token=(first.argmax(-1) == second.argmax(-1)).double().mean().item(),
        divergence=(first.exp() * (first - second)).sum(-1).double().mean().item(),
        largest=(first - second)[likely].abs().max().item(),
        positions=len(first),
    )
