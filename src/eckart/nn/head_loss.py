"""Cross-entropy behind a frozen output layer, with its gradient computed in the same pass, a few tokens at a time.

The logits of a batch are the largest tensor of a training step: tokens × vocabulary, several times over. Since the
output layer does not train, only the gradient of the hidden states is needed, which is as small as they are: it is
computed at once from each piece of the logits, and no logits are stored.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from eckart.nn.frozen import as_given, product, working_dtype

IGNORED = -100  # label of tokens that the loss ignores
_PIECE_ENTRIES = 2**23  # logits at a time


class HeadLoss(torch.autograd.Function):
    """Σ −log softmax(rows · weightᵀ + bias) at the targets, divided by a count: `head_loss` without ignored labels."""

    @staticmethod
    @as_given
    def forward(  # noqa: PLR0917
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, count: float
    ) -> Tensor:
        """The loss, float32; also computes the gradient of `hidden`."""
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        step = max(1, _PIECE_ENTRIES // weight.shape[0])
        work = working_dtype(hidden)
        weight, bias = weight.to(work), None if bias is None else bias.to(work)
        for start in range(0, len(hidden), step):
            piece = slice(start, start + step)
            goal, logits = targets[piece], product(hidden[piece].to(work), weight, bias).float()
            highest, index = logits.max(dim=1)
            target_logits = logits.gather(1, goal[:, None])[:, 0]
            shares = torch.softmax(logits, dim=1)
            # log Σ exp from the largest probability, which is never too small for its logarithm.
            normalizer = highest - shares.gather(1, index[:, None])[:, 0].log()
            total += (normalizer - target_logits).double().sum()
            if gradient is not None:
                shares[torch.arange(len(goal), device=goal.device), goal] -= 1
                gradient[piece] = product(shares.mul_(1 / count).to(work), weight.T)
        ctx.save_for_backward(gradient)
        return (total / count).float()

    @staticmethod
    @once_differentiable
    @as_given
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The gradient of `hidden`."""
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None, None, None


def head_loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, bias: Tensor | None = None, count: float | None = None
) -> Tensor:
    """Mean cross-entropy of the next tokens, in nats, without the logits of the batch.

    Args:
        hidden: input of the output layer, shape `(batch, tokens, in_features)`; the only one with a gradient.
        weight: weight of the output layer, shape `(vocabulary, in_features)`.
        labels: token ids, shape `(batch, tokens)`, not shifted; −100 is ignored.
        bias: bias of the output layer, shape `(vocabulary,)`.
        count: divisor of the sum; by default the number of tokens that are not ignored.

    Returns:
        float32 scalar, summed in float64.
    """
    targets = labels[:, 1:].reshape(-1)
    counted = (targets != IGNORED).nonzero()[:, 0]
    rows = hidden[:, :-1].reshape(-1, hidden.shape[-1])
    if len(counted) < len(targets):
        rows, targets = rows[counted], targets[counted]
    divisor = max(1, len(counted)) if count is None else count
    return cast("Tensor", HeadLoss.apply(rows, weight.detach(), bias, targets, float(divisor)))
