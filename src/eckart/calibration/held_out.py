"""Losses on held-out text of a model and of what became of it: whether calibrated codes are worth their place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eckart.engine.progress import NoProgress, Progress
from eckart.evaluation.streamed import StreamedModel

if TYPE_CHECKING:
    from eckart.checkpoint import Checkpoint


class WorseCodes(Exception):  # noqa: N818  # it ends one attempt, and the nearest codes are written instead
    """Calibrated codes have a higher loss on held-out text than the nearest ones."""


@dataclass(frozen=True)
class HeldOutLosses:
    """Losses of several models on the same held-out text, in nats per token.

    Attributes:
        by_model: the loss on each kind of text, by the model's label.
        tokens: number of predicted tokens.
    """

    by_model: Mapping[str, Mapping[str, float]]
    tokens: int

    def mean(self, label: str) -> float:
        """The mean over the kinds of text, each with the same weight."""
        losses = self.by_model[label].values()
        return sum(losses) / len(losses)

    def check_codes(self) -> None:
        """Refuse calibrated codes that are worse than the nearest ones.

        Raises:
            WorseCodes: they are.
        """
        written, nearest = self.mean("written"), self.mean("nearest codes")
        if written > nearest:
            msg = (
                f"The nearest codes were kept: calibrated ones had a loss of {written:.4f} instead of {nearest:.4f} on "
                "held-out text."
            )
            raise WorseCodes(msg)

    def share_kept(self, label: str, *, worst: str, best: str) -> float | None:
        """(worst − label) / (worst − best) of the means; None if the best is not better than the worst."""
        gap = self.mean(worst) - self.mean(best)
        return (self.mean(worst) - self.mean(label)) / gap if gap > 0 else None

    def to_json(self) -> dict[str, dict[str, float]]:
        """The mean and the loss on each kind of text, by label."""
        return {label: {"mean": self.mean(label), **losses} for label, losses in self.by_model.items()}


def measure_losses(
    models: Mapping[str, "Checkpoint"],
    texts: Mapping[str, Tensor],
    *,
    device: torch.device | str = "cpu",
    progress: Progress = NoProgress(),
) -> HeldOutLosses:
    """Measure models one after the other, each block by block.

    Args:
        models: by label.
        texts: token ids of each kind of text, shape `(sequences, length)`.
        device: to compute on.
        progress: receives the models.
    """
    losses: dict[str, dict[str, float]] = {}
    progress.start("Measuring losses", len(models), "steps")
    try:
        for label, checkpoint in models.items():
            model = StreamedModel(checkpoint, device=device)
            losses[label] = {kind: model.loss(ids).nats_per_token for kind, ids in texts.items()}
            progress.update(1, label)
    finally:
        progress.finish()
    return HeldOutLosses(losses, sum(ids[:, 1:].numel() for ids in texts.values()))
