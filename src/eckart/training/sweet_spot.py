"""The smallest setting of a sweep that is as good as the best one, and the confidence in that choice.

The rule. The noise is the scatter of a single run: the standard deviation of the loss between seeds, pooled over all
settings. A setting is within the noise of the best one (with the lowest mean loss) if its mean loss is higher by no
more than that: choosing between the two then matters less than the choice of the seed. The sweet spot is the setting
with the fewest parameters within the noise.

The confidence. Runs of one seed see the same data in the same order, so settings are compared seed by seed. With the
mean d̄ and the standard error e of the differences over n seeds, the true difference is within the noise s with
probability T((s − d̄)/e), where T is Student's distribution with n − 1 degrees of freedom. The sweet spot is right if it
is within the noise and every smaller setting is not; the sum of all error probabilities gives the reported lower bound.
It does not include that the best setting is chosen by the same losses, nor the uncertainty of s.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance
from typing import Any

SURE = 0.95
MOST_SEEDS = 100
RULE = (
    "fewest parameters among the settings whose mean loss is above the best by no more than the standard deviation "
    "of one run between seeds"
)


@dataclass(frozen=True)
class Setting:
    """A rank and a target, trained once per seed.

    Attributes:
        rank: rank of the adapter.
        target: pattern or preset, or several joined with `+`.
        params: number of trained parameters.
        losses: held-out losses in nats per token, by seed.
    """

    rank: int
    target: str
    params: int
    losses: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Mean loss over the seeds."""
        return fmean(self.losses.values())

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean; None with one seed."""
        return stdev(self.losses.values()) / math.sqrt(len(self.losses)) if len(self.losses) > 1 else None


@dataclass(frozen=True)
class SweetSpot:
    """The chosen setting, and the confidence in the choice.

    Attributes:
        setting: the smallest setting within the noise of the best one.
        best: the setting with the lowest mean loss.
        difference: mean loss of the setting minus that of the best one.
        difference_error: standard error of the difference over the seeds; None with one seed.
        noise: standard deviation of a single run between seeds; None with one seed.
        probability: lower bound of the probability that the choice is right; None with one seed.
        more_seeds: how many more seeds would decide it, if differences and scatter stay the same; 0 if it is decided,
            None with one seed, or if more than a hundred were needed.
    """

    setting: Setting
    best: Setting
    difference: float
    difference_error: float | None
    noise: float | None
    probability: float | None
    more_seeds: int | None

    @property
    def decided(self) -> bool:
        """Whether the probability reaches 95 %."""
        return self.probability is not None and self.probability >= SURE

    def to_json(self) -> dict[str, Any]:
        """The fields, and the rule in words."""
        setting, best = self.setting, self.best
        return {
            "rank": setting.rank,
            "target": setting.target,
            "params": setting.params,
            "loss": setting.mean,
            "best": {"rank": best.rank, "target": best.target, "params": best.params, "loss": best.mean},
            "difference": self.difference,
            "difference_error": self.difference_error,
            "noise": self.noise,
            "probability": self.probability,
            "decided": self.decided,
            "more_seeds": self.more_seeds,
            "rule": RULE,
        }


def find_sweet_spot(settings: Sequence[Setting]) -> SweetSpot | None:
    """Choose among settings that were all trained with the same seeds.

    Args:
        settings: settings with losses for the same seeds.

    Returns:
        The choice; with one seed the best setting, without confidence. None without settings.
    """
    if not settings:
        return None
    seeds = list(settings[0].losses)
    best = min(settings, key=lambda setting: (setting.mean, setting.params))
    if len(seeds) < 2:
        return SweetSpot(best, best, 0.0, None, None, None, None)
    noise = math.sqrt(fmean(variance(setting.losses.values()) for setting in settings))
    gaps = {id(setting): _gap(setting, best) for setting in settings}
    within = [setting for setting in settings if gaps[id(setting)][0] <= noise]
    chosen = min(within, key=lambda setting: (setting.params, setting.mean))
    smaller = [gaps[id(setting)] for setting in settings if setting.params < chosen.params]

    def probability(count: int) -> float:
        """Lower bound of the probability that the choice is right, with this many seeds."""
        wrong = 0.0 if chosen is best else 1 - _within(*gaps[id(chosen)], noise, count)
        return max(0.0, 1 - wrong - sum(_within(*gap, noise, count) for gap in smaller))

    enough = (count for count in range(len(seeds), MOST_SEEDS + 1) if probability(count) >= SURE)
    needed = next(enough, None)
    difference, scatter = gaps[id(chosen)]
    return SweetSpot(
        chosen,
        best,
        difference,
        scatter / math.sqrt(len(seeds)),
        noise,
        probability(len(seeds)),
        None if needed is None else needed - len(seeds),
    )


def _gap(setting: Setting, best: Setting) -> tuple[float, float]:
    """Mean and standard deviation, over the seeds, of the difference of a setting's loss to the best one's."""
    differences = [setting.losses[seed] - best.losses[seed] for seed in best.losses]
    return fmean(differences), stdev(differences)


def _within(mean: float, scatter: float, noise: float, count: int) -> float:
    """Probability that the true difference is at most the noise, after `count` seeds."""
    error = scatter / math.sqrt(count)
    if error == 0:
        return 1.0 if mean <= noise else 0.0
    return student_t((noise - mean) / error, count - 1)


def student_t(value: float, freedom: int) -> float:
    """Probability that Student's t of `freedom` degrees is below `value` (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan2(value, math.sqrt(freedom))
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for index in range(freedom // 2):
        total += term
        term *= math.cos(angle) ** 2 * (2 * index + 1 + odd) / (2 * index + 2 + odd)
    between = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return (1 + between) / 2
