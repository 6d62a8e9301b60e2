"""Gain recovered: how much of what a fine-tune learned on a text an adapter recovers.

Weight error misjudges a fine-tune: an adapter at 90 % relative error may still recover most of the gain.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from eckart.adapter import Adapter
from eckart.engine.progress import NoProgress, Progress
from eckart.errors import EckartError
from eckart.evaluation.bootstrap import Gains
from eckart.evaluation.held_out import HeldOut, Predict, losses_of, predictions, windows_of
from eckart.evaluation.loss import MAX_LENGTH
from eckart.evaluation.model import load_model, load_tokenizer
from eckart.linalg.interval import Interval
from eckart.nn import adapter_applied
from eckart.result import Result

if TYPE_CHECKING:
    from torch import Tensor, nn

Metric = Literal["loss", "kl"]


@dataclass(frozen=True, repr=False)
class GainReport(Result):
    """Losses on one text, in nats per token: of the base, of its fine-tune, and of the base with an adapter.

    Attributes:
        base_loss, tuned_loss, adapter_loss: mean over the tokens.
        tokens: number of tokens that count.
        interval: of the gain recovered, with 95 % confidence; None if the text is too short for one.
        metric: what the losses are: `loss`, the cross-entropy of the text, or `kl`, the divergence from the fine-tune.
    """

    base_loss: float
    tuned_loss: float
    adapter_loss: float
    tokens: int
    interval: Interval | None = None
    metric: Metric = "loss"

    @property
    def gain_recovered(self) -> float | None:
        """(base − adapter) / (base − tuned), 1 for all of it; None if the fine-tune is no better than the base."""
        gain = self.base_loss - self.tuned_loss
        return (self.base_loss - self.adapter_loss) / gain if gain > 0 else None

    @property
    def note(self) -> str | None:
        """Why there is no gain to recover; None if there is some."""
        return None if self.gain_recovered is not None else no_gain(self.base_loss, self.tuned_loss)

    def to_json(self) -> dict[str, Any]:
        """The `eval` object of a command."""
        return {
            "base_loss": self.base_loss,
            "tuned_loss": self.tuned_loss,
            "adapter_loss": self.adapter_loss,
            "gain_recovered": self.gain_recovered,
            "interval": interval_to_json(self.interval),
            "tokens": self.tokens,
            "metric": self.metric,
        }


def no_gain(base_loss: float, tuned_loss: float) -> str:
    """The sentence for a fine-tune without a gain."""
    return (
        f"on this text the fine-tune is no better than its base ({tuned_loss:.4f} against "
        f"{base_loss:.4f} nats per token), so there is no gain to recover: try text like its training data"
    )


def interval_to_json(interval: Interval | None) -> dict[str, float] | None:
    """An interval as result files contain it."""
    return interval and {"lower": interval.lower, "upper": interval.upper}


class GainMeter:
    """Measures adapters of one fine-tune on held-out data.

    One model is in memory at a time, in float32: first the fine-tune, then the base, which stays. For the divergence
    the fine-tune stays too.

    Attributes:
        held_out: the data.
        metric: what is measured.
    """

    def __init__(
        self,
        base: str | Path,
        tuned: str | Path | Adapter,
        held_out: str | HeldOut,
        *,
        metric: Metric = "loss",
        max_length: int = MAX_LENGTH,
        device: torch.device | str = "cpu",
        progress: Progress = NoProgress(),
    ) -> None:
        """Load the models and measure base and fine-tune.

        Args:
            base: SOURCE of the base, with its tokenizer if `held_out` is a text.
            tuned: SOURCE of the fine-tune, or the adapter of which others are approximations.
            held_out: data that the fine-tune was not trained on, or a text.
            metric: `loss`, or `kl` for the divergence from the fine-tune.
            max_length: tokens per window of a text, lowered to the model's own limit if its config states one.
            device: device of the models.
            progress: receives a stage for each measurement: `Loss of tuned`, `Loss of base`, `Loss of LABEL`.

        Raises:
            EckartError: a source or adapter does not fit, or the text is too short; see `load_model` and
                `adapter_applied`.
        """
        self.metric: Metric = metric
        self._device, self._progress, self._teacher = device, progress, None
        self._base: nn.Module | None = None
        tokenizer = load_tokenizer(base) if isinstance(held_out, str) else None
        with ExitStack() as stack:
            if isinstance(tuned, Adapter):
                tuned_model = self._load(base)
                self._base = tuned_model if metric == "loss" else None
                stack.enter_context(adapter_applied(tuned_model, tuned))
            else:
                tuned_model = self._load(tuned)
            if isinstance(held_out, str):
                limit = getattr(getattr(tuned_model, "config", None), "max_position_embeddings", None) or max_length
                held_out = windows_of(held_out, tokenizer, length=min(max_length, limit))
            self.held_out = held_out
            if metric == "kl":
                self._teacher = predictions(tuned_model)
                self._tuned = torch.zeros_like(held_out.counts)
                self._applied = stack.pop_all()  # the adapter stays in the teacher
            else:
                self._tuned = self._losses(tuned_model, "tuned")
        del tuned_model
        self._base = self._base or self._load(base)
        self.gains = Gains(self._losses(self._base, "base"), self._tuned)

    def losses(self, adapter: Adapter, label: str = "adapter") -> "Tensor":
        """The loss of the base with an adapter on each part of the data, shape `(parts,)`."""
        model = cast("nn.Module", self._base)
        with adapter_applied(model, adapter):
            return self._losses(model, label)

    def report(self, losses: "Tensor") -> GainReport:
        """Losses, gain and interval of an adapter, from its loss on each part."""
        tokens = self.held_out.tokens
        base, tuned, adapter = (float(each.sum()) / tokens for each in (self.gains.base, self.gains.tuned, losses))
        return GainReport(base, tuned, adapter, tokens, self.gains.interval(losses), self.metric)

    def require_gain(self) -> None:
        """Refuse a fine-tune that is no better than its base.

        Raises:
            EckartError: it is not; with both losses.
        """
        base, tuned = (float(each.sum()) / self.held_out.tokens for each in (self.gains.base, self.gains.tuned))
        if not tuned < base:
            raise EckartError(no_gain(base, tuned))

    def _load(self, source: str | Path) -> "nn.Module":
        return cast("nn.Module", load_model(source)).to(self._device)

    def _losses(self, model: "nn.Module | Predict", label: str) -> "Tensor":
        name = "KL" if self.metric == "kl" else "Loss"
        return losses_of(
            model,
            self.held_out,
            teacher=self._teacher,
            device=self._device,
            progress=self._progress,
            stage=f"{name} of {label}",
        )


def measure_gain(
    base: str | Path,
    tuned: str | Path | Adapter,
    adapter: Adapter,
    text: str | HeldOut,
    *,
    metric: Metric = "loss",
    max_length: int = MAX_LENGTH,
    device: torch.device | str = "cpu",
    progress: Progress = NoProgress(),
) -> GainReport:
    """Measure one adapter; arguments and errors as of `GainMeter`."""
    meter = GainMeter(base, tuned, text, metric=metric, max_length=max_length, device=device, progress=progress)
    return meter.report(meter.losses(adapter))


def measure_gains(
    base: str | Path,
    tuned: str | Path,
    adapters: Mapping[str, Adapter],
    text: str | HeldOut,
    *,
    max_length: int = MAX_LENGTH,
    progress: Progress = NoProgress(),
) -> dict[str, GainReport]:
    """Measure several adapters of one fine-tune; the base and the fine-tune are loaded and measured once.

    Args:
        base: SOURCE of the base, with its tokenizer.
        tuned: SOURCE of the fine-tune.
        adapters: adapters of any kind that `eckart.nn.adapter_applied` takes, by label.
        text: the text to measure losses on; for an honest answer none of it was trained on.
        max_length: tokens per window, see `GainMeter`.
        progress: receives a stage for each loss: `Loss of tuned`, `Loss of base`, `Loss of LABEL`.

    Returns:
        A report for each label.

    Raises:
        EckartError: see `GainMeter`.
    """
    meter = GainMeter(base, tuned, text, max_length=max_length, progress=progress)
    return {label: meter.report(meter.losses(adapter, label)) for label, adapter in adapters.items()}
