"""The uncertainty of a gain measured on a text: a paired bootstrap over its parts."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from eckart.linalg.interval import Interval

CONFIDENCE = 0.95
RESAMPLES = 4000
LEAST_PARTS = 4  # fewer say nothing about their spread
MOST_TIMES = 1000  # more text than this is not worth a number


@dataclass(frozen=True)
class Gains:
    """Losses of a base and of its fine-tune on each part of a text, against which adapters are measured.

    Attributes:
        base: summed loss of each part, shape `(parts,)`, float64.
        tuned: the same of the fine-tune.
    """

    base: Tensor
    tuned: Tensor

    def gain(self, adapter: Tensor) -> float:
        """(base − adapter) / (base − tuned) over all parts: 1 for all of the gain; NaN if there is none.

        Args:
            adapter: summed loss of each part.
        """
        total = float((self.base - self.tuned).sum())
        return float((self.base - adapter).sum()) / total if total > 0 else math.nan

    def interval(self, adapter: Tensor, *, confidence: float = CONFIDENCE, seed: int = 0) -> Interval | None:
        """The confidence interval of `gain`, by resampling the parts together for all three models.

        An expanded percentile interval: with few parts, percentiles alone are too narrow by what Student's t is wider
        than the normal distribution, and by √(n / (n − 1)).

        Args:
            adapter: summed loss of each part.
            confidence: probability that the interval contains the gain on all such text.
            seed: seed of the resampling; one seed resamples the same parts for every adapter.

        Returns:
            None if there are too few parts, or if their number does not even show that there is a gain.

        Hesterberg (2015), "What teachers should know about the bootstrap".
        """
        count = len(self.base)
        if count < LEAST_PARTS:
            return None
        generator = torch.Generator().manual_seed(seed)
        pair = torch.stack([self.base - adapter, self.base - self.tuned], dim=1)
        sums = torch.cat(
            [
                pair[torch.randint(count, (rows, count), generator=generator)].sum(1)
                for rows in _chunks(RESAMPLES, max(1, 2**22 // count))
            ]
        )
        tail = NormalDist().cdf(-_student(count - 1, confidence) * math.sqrt(count / (count - 1)))
        if float((sums[:, 1] <= 0).double().mean()) > tail:
            return None
        ratios = (sums[:, 0] / sums[:, 1])[sums[:, 1] > 0]
        low, high = torch.quantile(ratios, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
        return Interval(low, high)


def times_needed(gain: float, interval: Interval | None, keep: float) -> float:
    """How many times as much text would bring `keep` out of the interval of a gain: 1 if it is out already.

    The width of an interval falls with the square root of the amount of text.
    """
    if interval is None:
        return math.inf
    if not interval.lower < keep < interval.upper:
        return 1.0
    distance = abs(gain - keep)
    width = (interval.upper - gain) if keep > gain else (gain - interval.lower)
    return (width / distance) ** 2 if distance else math.inf


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def _student(freedom: int, confidence: float) -> float:
    """The quantile of Student's t for a two-sided interval, by the Cornish–Fisher expansion (to 1 % from 3 degrees)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))
