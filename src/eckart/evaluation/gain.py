"""Gain recovered: how much of what a fine-tune learned on a text an adapter brings back.

Weight error misjudges a fine-tune: an adapter at 90 % relative error may still recover most of the gain.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.evaluation.applied import adapter_applied
from eckart.evaluation.loss import MAX_LENGTH, LossResult, WindowCallback, text_loss
from eckart.evaluation.model import load_model, load_tokenizer

if TYPE_CHECKING:
    from torch import nn

    from eckart.adapter import Adapter

GainCallback = Callable[[str, int, int], None]
"""Called as a measurement goes on: `base`, an adapter's label or `tuned`; windows done; windows in all."""


@dataclass(frozen=True)
class GainReport:
    """Losses on one text, nats per token: of the base, of its fine-tune, of the base with an adapter."""

    base_loss: float
    tuned_loss: float
    adapter_loss: float
    tokens: int

    @property
    def gain_recovered(self) -> float | None:
        """(base − adapter) / (base − tuned), 1 for all of it; None if tuning gained nothing."""
        gain = self.base_loss - self.tuned_loss
        return (self.base_loss - self.adapter_loss) / gain if gain > 0 else None

    @property
    def note(self) -> str | None:
        """Why there is no gain to recover, if there is none."""
        if self.gain_recovered is not None:
            return None
        return (
            f"here the fine-tune is no better than its base ({self.tuned_loss:.4f} against "
            f"{self.base_loss:.4f} nats per token), so no gain can be recovered: try text like its training data"
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
    progress: GainCallback | None = None,
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
    progress: GainCallback | None = None,
) -> dict[str, GainReport]:
    """Measure several adapters of one fine-tune, with the base and the fine-tune read and measured once.

    One model is in memory at a time, in float32.

    Args:
        base: SOURCE of the base, with its tokenizer.
        tuned: SOURCE of the fine-tune.
        adapters: by label; each as `adapter_applied` takes it.
        text: what the losses are measured on; for an honest answer none of it was trained on.
        max_length: tokens of a window, see `text_loss`.
        progress: called after every window.

    Returns:
        A report for each label.

    Raises:
        EckartError: a source or adapter does not fit, or the text is too short; see `load_model`, `text_loss`
            and `adapter_applied`.
    """
    tokenizer = load_tokenizer(base)

    def loss(model: "nn.Module", label: str) -> LossResult:
        return text_loss(model, text, tokenizer, max_length=max_length, progress=_labelled(progress, label))

    model = load_model(base)
    base_loss = loss(model, "base")
    losses: dict[str, LossResult] = {}
    for label, adapter in adapters.items():
        with adapter_applied(model, adapter):
            losses[label] = loss(model, label)
    del model  # before the next is read
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


def _labelled(progress: GainCallback | None, label: str) -> WindowCallback | None:
    if progress is None:
        return None
    return lambda done, windows: progress(label, done, windows)
