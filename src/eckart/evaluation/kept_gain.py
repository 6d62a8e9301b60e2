"""What a combination of adapters keeps of each one's gain on its own text, and the weights that keep most.

The gain of an adapter on a text is the loss of the base less that with the adapter.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from eckart.engine.progress import NoProgress, Progress
from eckart.errors import EckartError, OptionError
from eckart.evaluation.held_out import HeldOut, losses_of
from eckart.evaluation.loss import LossResult, text_loss
from eckart.evaluation.model import load_model, load_tokenizer
from eckart.nn import adapter_applied

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from eckart.adapter import Adapter

STEP = 1.5  # factor by which the search changes one weight

Loss = Callable[["nn.Module", str], LossResult]
"""The loss of a model on one text; the second argument names the measurement."""


@dataclass(frozen=True)
class KeptGain:
    """Losses on one adapter's text, in nats per token.

    Attributes:
        base_loss: of the base.
        alone_loss: with the adapter that the text belongs to.
        combined_loss: with the combination.
        tokens: number of predicted tokens.
    """

    base_loss: float
    alone_loss: float
    combined_loss: float
    tokens: int

    @property
    def gain_kept(self) -> float | None:
        """(base − combined) / (base − alone), 1 for all of it; None if the adapter is no better than the base."""
        gain = self.base_loss - self.alone_loss
        return (self.base_loss - self.combined_loss) / gain if gain > 0 else None

    def to_json(self) -> dict[str, float | None]:
        """The entry of the `eval` list of the combine command."""
        return {
            "base_loss": self.base_loss,
            "alone_loss": self.alone_loss,
            "combined_loss": self.combined_loss,
            "gain_kept": self.gain_kept,
            "tokens": self.tokens,
        }


class KeptGainMeter:
    """Measures combinations of adapters on a text of each; the losses without them are measured once."""

    def __init__(
        self, model: "nn.Module", adapters: "Sequence[Adapter]", losses: Sequence[Loss], *, texts: str = "text"
    ) -> None:
        """Measure the base and each adapter on its own text.

        Args:
            model: the base, unchanged afterwards.
            adapters: the adapters.
            losses: of each adapter's text, see `text_losses`.
            texts: what progress calls one of them.

        Raises:
            OptionError: there is not one text for each adapter.
            EckartError: an adapter does not fit; see `eckart.nn.adapter_applied`.
        """
        if len(losses) != len(adapters):
            msg = f"{len(losses)} texts for {len(adapters)} adapters; `eval` takes one for each, in their order"
            raise OptionError(msg)
        self._model, self._losses, self._texts = model, losses, texts
        self._base = self._measured("base")
        self._alone = []
        for number, (adapter, loss) in enumerate(zip(adapters, losses, strict=True), 1):
            with adapter_applied(model, adapter):
                self._alone.append(loss(model, f"Loss of adapter {number} on {texts} {number}"))

    def measure(self, combination: "Adapter", label: str = "combination") -> list[KeptGain]:
        """What a combination keeps on each text."""
        with adapter_applied(self._model, combination):
            combined = self._measured(label)
        rows = zip(self._base, self._alone, combined, strict=True)
        return [
            KeptGain(base.nats_per_token, alone.nats_per_token, after.nats_per_token, base.tokens)
            for base, alone, after in rows
        ]

    def _measured(self, label: str) -> list[LossResult]:
        each = enumerate(self._losses, 1)
        return [loss(self._model, f"Loss of {label} on {self._texts} {number}") for number, loss in each]


def text_losses(base: "str | Path", texts: Sequence[str | HeldOut], *, progress: Progress = NoProgress()) -> list[Loss]:
    """Functions that measure a model on each text, in the tokens of a base, or on held-out data."""
    tokenizer = load_tokenizer(base) if any(isinstance(text, str) for text in texts) else None

    def loss_on(text: str | HeldOut) -> Loss:
        def measured(model: "nn.Module", stage: str) -> LossResult:
            if isinstance(text, str):
                return text_loss(model, text, tokenizer, progress=progress, stage=stage)
            total = float(losses_of(model, text, progress=progress, stage=stage).sum())
            return LossResult(total / text.tokens, text.tokens)

        return measured

    return [loss_on(text) for text in texts]


def measure_kept(
    base: "str | Path",
    adapters: "Sequence[Adapter]",
    combination: "Adapter",
    texts: Sequence[str | HeldOut],
    *,
    progress: Progress = NoProgress(),
) -> list[KeptGain]:
    """What a combination keeps of the gain of each adapter on its own text.

    Args:
        base: SOURCE of the base, with its tokenizer.
        adapters: the adapters that were combined.
        combination: the result.
        texts: a text or held-out data for each adapter, none of which it was trained on.
        progress: receives a stage for each loss.

    Raises:
        OptionError: there is not one text for each adapter.
        EckartError: see `load_model`, `text_loss` and `adapter_applied`.
    """
    meter = KeptGainMeter(load_model(base), adapters, text_losses(base, texts, progress=progress))
    return meter.measure(combination)


@dataclass(frozen=True)
class SearchedWeights:
    """Weights found by `search_weights`.

    Attributes:
        weights: of each adapter.
        gain_kept: mean over the texts, on those that the search used.
        tried: every candidate with its mean.
    """

    weights: tuple[float, ...]
    gain_kept: float
    tried: dict[tuple[float, ...], float]


def search_weights(
    count: int, combine: "Callable[[tuple[float, ...]], Adapter]", meter: KeptGainMeter
) -> SearchedWeights:
    """The weights that keep most of the gains on average, by a small search.

    It starts from equal weights of 1, 1/√count and 1/count, then multiplies and divides one weight after another by 1.5
    and keeps what helps: at most 3 + 2·count combinations.

    Args:
        count: number of adapters.
        combine: combines them with given weights.
        meter: measures a combination, on text apart from that on which the result is reported.

    Raises:
        EckartError: no adapter is better than the base on its text, so there is no gain to keep.
    """
    tried: dict[tuple[float, ...], float] = {}

    def score(weights: tuple[float, ...]) -> float:
        if weights not in tried:
            shown = ",".join(f"{weight:.3g}" for weight in weights)
            kept = [each.gain_kept for each in meter.measure(combine(weights), f"weights {shown}")]
            gains = [gain for gain in kept if gain is not None]
            if not gains:
                msg = "no adapter is better than the base on its own text, so there is no gain that weights could keep"
                raise EckartError(msg)
            tried[weights] = fmean(gains)
        return tried[weights]

    best = max((((weight,) * count) for weight in (1.0, 1 / math.sqrt(count), 1 / count)), key=score)
    for index in range(count):
        changed = [(*best[:index], best[index] * factor, *best[index + 1 :]) for factor in (STEP, 1 / STEP)]
        best = max([best, *changed], key=score)
    return SearchedWeights(best, tried[best], tried)
