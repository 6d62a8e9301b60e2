"""Whether a merged model predicts the same as its base with the adapter."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class PredictionMatch:
    """How similar the predictions of two models on the same text are.

    Attributes:
        same_token: share of positions at which both predict the same next token.
        divergence: mean KL(first ‖ second) of the next token, in nats.
        largest: largest difference of a log-probability, among tokens that the first gives at least 0.001.
        positions: number of positions compared.
    """

    same_token: float
    divergence: float
    largest: float
    positions: int


@torch.no_grad()
def log_probabilities(model: "nn.Module", ids: Tensor) -> Tensor:
    """Log-probabilities of the next token after each of `ids`, shape `(tokens,)`; float32 `(tokens, vocabulary)`."""
    return model(input_ids=ids[None], use_cache=False).logits[0].float().log_softmax(-1)


def compare_predictions(first: Tensor, second: Tensor) -> PredictionMatch:
    """Compare two results of `log_probabilities`, shapes `(tokens, vocabulary)`."""
    likely = first > torch.tensor(1e-3).log()
    return PredictionMatch(
        same_token=(first.argmax(-1) == second.argmax(-1)).double().mean().item(),
        divergence=(first.exp() * (first - second)).sum(-1).double().mean().item(),
        largest=(first - second)[likely].abs().max().item(),
        positions=len(first),
    )
