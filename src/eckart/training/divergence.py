"""How far a model's predictions are from a teacher's: the KL divergence over the whole vocabulary, in few rows at once.

Logits of a large vocabulary are the largest tensors of a distillation. Two of them exist here, the student's and the
teacher's, in the dtype of the models; float32 copies only of `ROWS_AT_ONCE` rows, and the gradient takes the teacher's
place.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class Agreement:
    """What a model's predictions are worth on a text, in nats per token.

    Attributes:
        kl: KL(teacher ‖ model), zero where both predict the same.
        loss: cross-entropy of the text itself.
    """

    kl: float
    loss: float


def turn_into_gradient(teacher: Tensor, logits: Tensor) -> float:
    """Mean KL(teacher ‖ student) of rows of logits; its gradient in the student's overwrites the teacher's.

    Of a row that is softmax(student) − softmax(teacher), over the number of rows.

    Args:
        teacher: shape `(rows, vocabulary)`, contiguous.
        logits: of the student, the same shape, without gradient.

    Returns:
        The mean in nats; terms of a row are summed in float32, rows in float64.
    """
    total, rows = 0.0, len(logits)
    for goal, own in zip(teacher.split(ROWS_AT_ONCE), logits.split(ROWS_AT_ONCE), strict=True):
        log_p, log_q = goal.float().log_softmax(-1), own.float().log_softmax(-1)
        p = log_p.exp()
        total += (p * (log_p - log_q)).sum(-1).double().sum().item()
        goal.copy_(log_q.exp_().sub_(p).div_(rows))
    return total / rows


def summed_agreement(teacher: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Sums of KL(teacher ‖ model) and of the loss over rows.

    Args:
        teacher: shape `(rows, vocabulary)`.
        logits: of the model, the same shape.
        targets: the tokens that came, shape `(rows,)`.

    Returns:
        Both, shape `(2,)`, float64, on the CPU.
    """
    total = torch.zeros(2, dtype=torch.float64)
    parts = zip(*(rows.split(ROWS_AT_ONCE) for rows in (teacher, logits, targets)), strict=True)
    for goal, own, came in parts:
        log_p, log_q = goal.float().log_softmax(-1), own.float().log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        loss = -log_q.gather(-1, came[:, None])
        total += torch.stack([kl.double().sum(), loss.double().sum()]).cpu()
    return total
