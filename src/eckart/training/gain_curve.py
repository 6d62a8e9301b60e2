"""The gain that an adapter keeps at each rank that was measured, and the rank that was chosen from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eckart.evaluation import GainReport
from eckart.evaluation.bootstrap import MOST_TIMES, times_needed
from eckart.evaluation.gain import interval_to_json
from eckart.result import Result


@dataclass(frozen=True)
class GainPoint:
    """An adapter at one rank, measured.

    Attributes:
        rank: its rank; with shared ranks, the uniform rank of the same size.
        params: number of parameters.
        report: its losses.
        ranks: of each layer if they are shared; None if they are uniform.
    """

    rank: int
    params: int
    report: GainReport
    ranks: Mapping[str, int] | None = None

    @property
    def gain(self) -> float:
        """The gain that it keeps."""
        return self.report.gain_recovered or 0.0

    def to_json(self) -> dict[str, Any]:
        """The entry of `curve`."""
        return {
            "rank": self.rank,
            "params": self.params,
            "loss": self.report.adapter_loss,
            "gain_recovered": self.report.gain_recovered,
            "interval": interval_to_json(self.report.interval),
            **({} if self.ranks is None else {"ranks": dict(self.ranks)}),
        }


@dataclass(frozen=True, repr=False)
class GainCurve(Result):
    """The result of choosing a rank by the gain that it keeps.

    Attributes:
        keep: the gain that suffices.
        shared: whether ranks are shared by energy instead of uniform.
        candidates: number of ranks to choose from.
        points: those that were measured, from the lowest rank.
        chosen: the smallest that keeps enough, or the highest rank if none does.
        report: of the adapter that is written, which may have been distilled.
        distilled: whether it was.
        notes: what the user should know.
    """

    keep: float
    shared: bool
    candidates: int
    points: Sequence[GainPoint]
    chosen: GainPoint
    report: GainReport
    distilled: bool = False
    notes: tuple[str, ...] = ()

    @property
    def reached(self) -> bool:
        """Whether the adapter that is written keeps enough."""
        return (self.report.gain_recovered or 0.0) >= self.keep

    @property
    def times_more_text(self) -> float:
        """How many times as much text would decide the rank: 1 if this one does, infinite if that is unknown.

        It is decided where the chosen rank keeps enough and the next lower one does not, beyond their intervals.
        """
        if self.distilled or not self.reached:
            return times_needed(self.report.gain_recovered or 0.0, self.report.interval, self.keep)
        below = [point for point in self.points if point.rank < self.chosen.rank][-1:]
        return max(times_needed(p.gain, p.report.interval, self.keep) for p in (*below, self.chosen))

    @property
    def text_note(self) -> str | None:
        """That the text is too short to decide, and how much more is needed; None if it decides."""
        times = self.times_more_text
        if times <= 1:
            return None
        tokens = self.report.tokens
        if math.isinf(times) or times > MOST_TIMES:
            needed = "far more" if self.report.interval else "at least a few thousand tokens more"
        else:
            needed = f"about {max(2, math.ceil(times))} times as much ({_rounded(times * tokens):,} tokens)"
        return (
            f"the text of {tokens:,} tokens is too short to tell whether rank {self.chosen.rank} is the smallest that "
            f"keeps {100 * self.keep:g} %: that needs {needed}"
        )

    def rows(self) -> list[dict[str, Any]]:
        """The measured ranks."""
        return [point.to_json() for point in self.points]

    def to_json(self) -> dict[str, Any]:
        """The `gain` object of a command."""
        times = self.times_more_text
        return {
            "keep": self.keep,
            "metric": self.report.metric,
            "shared": self.shared,
            "rank": self.chosen.rank,
            "reached": self.reached,
            "distilled": self.distilled,
            "candidates": self.candidates,
            "curve": self.rows(),
            "times_more_text": None if math.isinf(times) else times,
            "notes": list(self.notes),
        }


def _rounded(number: float) -> int:
    """To two digits."""
    scale = 10 ** max(0, int(math.log10(number)) - 1)
    return math.ceil(number / scale) * scale
