"""The rank of an adapter by the gain that it keeps on held-out data; a distillation where no rank keeps enough."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from eckart.adapter import Adapter
from eckart.engine.progress import NoProgress, Progress
from eckart.errors import EckartError, OptionError
from eckart.evaluation import GainMeter, HeldOut
from eckart.evaluation.gain import Metric
from eckart.evaluation.search import smallest_sufficient
from eckart.operations.truncation import Truncations
from eckart.training.distillation import Distillation
from eckart.training.distiller import SHORT
from eckart.training.finetuning import FinetuneSettings
from eckart.training.gain_curve import GainCurve, GainPoint


@dataclass(frozen=True)
class GainChoice:
    """How a rank is chosen by its gain.

    Attributes:
        keep: the share of the fine-tune's gain that suffices.
        metric: `loss`, or `kl` for the divergence from the fine-tune.
        shared: share the size of each rank over the layers by energy.
        ladder: measure all of these ranks instead of searching among all.
        max_rank: the highest rank to consider; None for that of the adapter.
        remedy: distill at the highest rank if no rank keeps enough.
    """

    keep: float = 0.95
    metric: Metric = "loss"
    shared: bool = False
    ladder: tuple[int, ...] = ()
    max_rank: int | None = None
    remedy: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not 0 < self.keep < 1:
            msg = f"`gain` must be a share between 0 and 1, such as 0.95, got {self.keep}"
            raise OptionError(msg)
        if any(rank < 1 for rank in self.ladder):
            msg = f"`ladder` must be ranks of at least 1, got {', '.join(map(str, self.ladder))}"
            raise OptionError(msg)


class RankByGain:
    """Called with an adapter, truncates it to the rank it needs; a `refine` argument of `extract` and `resize`.

    Attributes:
        result: the measured curve of the last call.
        distillation: the distillation, if one was needed.
    """

    result: GainCurve | None = None

    def __init__(
        self,
        base: str | Path,
        tuned: str | Path | Adapter,
        held_out: HeldOut,
        choice: GainChoice = GainChoice(),
        *,
        distillation: Distillation | None = None,
        settings: FinetuneSettings = SHORT,
        is_ordered: bool = False,
        device: torch.device | str = "cpu",
        progress: Progress = NoProgress(),
    ) -> None:
        """Note what to measure; the models are loaded when this is called.

        Args:
            base: SOURCE of the base.
            tuned: SOURCE of the fine-tune, or the adapter that is resized, whose own gain is then 1.
            held_out: what to measure on.
            choice: what to look for.
            distillation: what trains the factors if no rank keeps enough; by default a distillation on the first half
                of `held_out`, and the gain is then measured on the second half.
            settings: of that default distillation.
            is_ordered: whether the factors are in the order of singular values, as those of `extract` are.
            device: device of the models.
            progress: receives the measurements.
        """
        self.base, self.tuned, self.held_out, self.choice = base, tuned, held_out, choice
        self.distillation, self._settings, self._is_ordered = distillation, settings, is_ordered
        self._device, self._progress = device, progress

    def __call__(self, adapter: Adapter) -> Adapter:
        """The adapter at the smallest rank that keeps enough; if none does, at the highest one, distilled if asked.

        Raises:
            EckartError: the fine-tune is no better than its base on the held-out data.
        """
        truncations = Truncations.of(adapter, is_ordered=self._is_ordered)
        curve, ranks = self._search(truncations)
        result = truncations.at(ranks)
        if not curve.reached and self.choice.remedy:
            result, curve = self._distilled(result, curve)
        notes = [note for note in (curve.text_note,) if note]
        if not curve.reached:
            gain, asked = 100 * (curve.report.gain_recovered or 0.0), 100 * self.choice.keep
            notes.append(
                f"rank {curve.chosen.rank} keeps {gain:.3g} % of the gain, less than the {asked:g} % asked for"
            )
        self.result = replace(curve, notes=(*curve.notes, *notes))
        for note in self.result.notes:
            self._progress.note(note[0].upper() + note[1:])
        return result

    def _search(self, truncations: Truncations) -> tuple[GainCurve, dict[str, int]]:
        """Measure ranks and choose one."""
        keep, full = self.choice.keep, truncations.highest_rank
        full = min(full, self.choice.max_rank or full)
        candidates = sorted({min(rank, full) for rank in self.choice.ladder}) or list(range(1, full + 1))
        ranks = [(truncations.shared if self.choice.shared else truncations.uniform)(each) for each in candidates]
        meter = self._meter(self.held_out)
        meter.require_gain()
        points: dict[int, GainPoint] = {}

        def measured(index: int, losses: Tensor, adapter: Adapter) -> None:
            shared = ranks[index] if self.choice.shared else None
            points[index] = GainPoint(candidates[index], adapter.params, meter.report(losses), shared)

        def gain(index: int) -> float:
            adapter = truncations.at(ranks[index])
            measured(index, meter.losses(adapter, f"rank {candidates[index]}"), adapter)
            return points[index].gain

        last = None
        if isinstance(self.tuned, Adapter) and candidates[-1] >= max(
            layer.rank for layer in self.tuned.outline().values()
        ):
            # It is the adapter itself, factored again.
            last = len(candidates) - 1
            measured(last, meter.gains.tuned, truncations.at(ranks[last]))
        if self.choice.ladder:
            gains = {index: points[index].gain if index in points else gain(index) for index in range(len(candidates))}
            chosen = next((index for index in range(len(candidates)) if gains[index] >= keep), None)
        else:
            lost = [truncations.lost(each) for each in ranks]
            chosen, _ = smallest_sufficient(lost, gain, keep=keep, last=None if last is None else points[last].gain)
        place = len(candidates) - 1 if chosen is None else chosen
        curve = GainCurve(
            keep,
            self.choice.shared,
            len(candidates),
            [points[index] for index in sorted(points)],
            points[place],
            points[place].report,
            notes=meter.held_out.notes,
        )
        return curve, ranks[place]

    def _distilled(self, adapter: Adapter, curve: GainCurve) -> tuple[Adapter, GainCurve]:
        """The adapter with trained factors, measured on data that they were not trained on."""
        held_out, notes = self.held_out, []
        if self.distillation is None:
            training, held_out = held_out.halves()
            try:
                self.distillation = Distillation(
                    self.base, self.tuned, _packed(training.sequences), self._settings, device=self._device,
                    progress=self._progress,
                )  # fmt: skip
            except EckartError as error:
                return adapter, replace(
                    curve, notes=(*curve.notes, f"not distilled: {error}; name a text with `distill`")
                )
            notes.append(
                f"rank {curve.chosen.rank} alone keeps {100 * curve.chosen.gain:.3g} % of the gain: its factors were "
                "distilled on the first half of the held-out text, and the gain is measured on the second half"
            )
        trained = self.distillation(adapter)
        meter = self._meter(held_out)
        report = meter.report(meter.losses(trained, "distilled"))
        curve = replace(curve, report=report, distilled=trained is not adapter, notes=(*curve.notes, *notes))
        return trained, curve

    def _meter(self, held_out: HeldOut) -> GainMeter:
        return GainMeter(
            self.base, self.tuned, held_out, metric=self.choice.metric, device=self._device, progress=self._progress
        )


def _packed(sequences: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([token for ids in sequences for token in ids], dtype=torch.int64)
