"""The KL divergence of a model's predictions from a teacher's, over the complete vocabulary, a few rows at a time.

Logits of a large vocabulary are the largest tensors of a distillation. Only two exist, the student's and the teacher's,
in the dtype of the models. Float32 copies have `ROWS_AT_ONCE` rows, and the gradient overwrites the teacher's logits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class Agreement:
    """How well a model predicts a text, and as its teacher does, in nats per token.

    Attributes:
        kl: KL(teacher ‖ model), zero if both predict the same.
        loss: cross-entropy of the text.
    """

    kl: float
    loss: float


def turn_into_gradient(teacher: Tensor, logits: Tensor) -> float:
    """Mean KL(teacher ‖ student) of rows of logits; its gradient by the student's logits overwrites the teacher's.

    The gradient of a row is softmax(student) − softmax(teacher), divided by the number of rows.

    Args:
        teacher: logits of the teacher, shape `(rows, vocabulary)`, contiguous; overwritten.
        logits: logits of the student, same shape, without gradient.

    Returns:
        The mean in nats; terms of a row are summed in float32, rows in float64.
    """
    total, rows = 0.0, len(logits)
    for goal, student in zip(teacher.split(ROWS_AT_ONCE), logits.split(ROWS_AT_ONCE), strict=True):
        log_p, log_q = goal.float().log_softmax(-1), student.float().log_softmax(-1)
        p = log_p.exp()
        total += (p * (log_p - log_q)).sum(-1).double().sum().item()
        goal.copy_(log_q.exp_().sub_(p).div_(rows))
    return total / rows


def summed_agreement(teacher: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Sums of KL(teacher ‖ model) and of the loss over rows.

    Args:
        teacher: logits of the teacher, shape `(rows, vocabulary)`.
        logits: logits of the model, same shape.
        targets: the next tokens of the text, shape `(rows,)`.

    Returns:
        Both, shape `(2,)`, float64, on the CPU.
    """
    total = torch.zeros(2, dtype=torch.float64)
    parts = zip(*(rows.split(ROWS_AT_ONCE) for rows in (teacher, logits, targets)), strict=True)
    for goal, model, target in parts:
        log_p, log_q = goal.float().log_softmax(-1), model.float().log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        loss = -log_q.gather(-1, target[:, None])
        total += torch.stack([kl.double().sum(), loss.double().sum()]).cpu()
    return total
