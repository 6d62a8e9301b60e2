"""Gain recovered: how much of what a fine-tune learned on a text an adapter recovers.

Weight error misjudges a fine-tune: an adapter at 90 % relative error may still recover most of the gain.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.engine.progress import NoProgress, Progress
from eckart.evaluation.loss import MAX_LENGTH, LossResult, text_loss
from eckart.evaluation.model import load_model, load_tokenizer
from eckart.nn import adapter_applied
from eckart.result import Result

if TYPE_CHECKING:
    from torch import nn

    from eckart.adapter import Adapter


@dataclass(frozen=True, repr=False)
class GainReport(Result):
    """Losses on one text, in nats per token: of the base, of its fine-tune, and of the base with an adapter."""

    base_loss: float
    tuned_loss: float
    adapter_loss: float
    tokens: int

    @property
    def gain_recovered(self) -> float | None:
        """(base − adapter) / (base − tuned), 1 for all of it; None if the fine-tune is no better than the base."""
        gain = self.base_loss - self.tuned_loss
        return (self.base_loss - self.adapter_loss) / gain if gain > 0 else None

    @property
    def note(self) -> str | None:
        """Why there is no gain to recover; None if there is some."""
        if self.gain_recovered is not None:
            return None
        return (
            f"on this text the fine-tune is no better than its base ({self.tuned_loss:.4f} against "
            f"{self.base_loss:.4f} nats per token), so there is no gain to recover: try text like its training data"
        )

    def to_json(self) -> dict[str, float | None]:
        """The `eval` object of the extract command."""
        return {
            "base_loss": self.base_loss,
            "tuned_loss": self.tuned_loss,
            "adapter_loss": self.adapter_loss,
            "gain_recovered": self.gain_recovered,
        }


def measure_gain(
    base: str | Path,
    tuned: str | Path,
    adapter: "Adapter",
    text: str,
    *,
    max_length: int = MAX_LENGTH,
    progress: Progress = NoProgress(),
) -> GainReport:
    """Measure one adapter; see `measure_gains`."""
    return measure_gains(base, tuned, {"adapter": adapter}, text, max_length=max_length, progress=progress)["adapter"]


def measure_gains(
    base: str | Path,
    tuned: str | Path,
    adapters: Mapping[str, "Adapter"],
    text: str,
    *,
    max_length: int = MAX_LENGTH,
    progress: Progress = NoProgress(),
) -> dict[str, GainReport]:
    """Measure several adapters of one fine-tune; the base and the fine-tune are loaded and measured once.

    One model is in memory at a time, in float32.

    Args:
        base: SOURCE of the base, with its tokenizer.
        tuned: SOURCE of the fine-tune.
        adapters: adapters of any kind that `eckart.nn.adapter_applied` takes, by label.
        text: the text to measure losses on; for an honest answer none of it was trained on.
        max_length: tokens per window, see `text_loss`.
        progress: receives a stage for each loss: `Loss of base`, `Loss of LABEL`, `Loss of tuned`.

    Returns:
        A report for each label.

    Raises:
        EckartError: a source or adapter does not fit, or the text is too short; see `load_model`, `text_loss`
            and `adapter_applied`.
    """
    tokenizer = load_tokenizer(base)

    def loss(model: "nn.Module", label: str) -> LossResult:
        return text_loss(model, text, tokenizer, max_length=max_length, progress=progress, stage=f"Loss of {label}")

    model = load_model(base)
    base_loss = loss(model, "base")
    losses: dict[str, LossResult] = {}
    for label, adapter in adapters.items():
        with adapter_applied(model, adapter):
            losses[label] = loss(model, label)
    del model  # before the next one is loaded
    tuned_loss = loss(load_model(tuned), "tuned")
    return {
        label: GainReport(
            base_loss.nats_per_token,
            tuned_loss.nats_per_token,
            losses[label].nats_per_token,
            base_loss.tokens,
        )
        for label in adapters
    }
