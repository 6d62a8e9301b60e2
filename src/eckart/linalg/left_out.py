"""How much damping calibrated codes need, decided on kinds of inputs that they were not calibrated with.

Codes fit the inputs they are calibrated with and can be worse than the nearest ones for others. So each kind is left
out once: the codes are calibrated on all others and judged by the output error on it. The worst one decides:
what a model will see may be as unlike the calibration as any of the kinds is unlike the others.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from eckart.linalg.calibrated_codes import calibrated_codes_of_each
from eckart.linalg.output_metric import Metric, moment_factor
from eckart.linalg.scaled_levels import ScaledLevels

DAMPINGS = (0.15, 2.0)  # on SmolLM2 0.15 is within 5 % of the best of six for every layer that was tried
SAMPLED_ROWS = 128  # outputs are independent of each other: some of them show which damping suits the inputs


def best_damping(
    weight: Float[Tensor, "m n"],
    moments: Sequence[Float[Tensor, "n n"]],
    grid: ScaledLevels,
    *,
    dampings: Sequence[float] = DAMPINGS,
) -> float | None:
    """The damping whose codes have the least output error on the kind of inputs that was left out, for the worst kind.

    Args:
        weight: shape `(out_features, in_features)`.
        moments: second moment of each kind of inputs, per token.
        grid: the representable values.
        dampings: those to choose from.

    Returns:
        one of `dampings`; None if none gives codes that are better than the nearest ones for every kind, or there is
        only one kind.
    """
    if len(moments) < 2:
        return None
    rows = torch.linspace(0, len(weight) - 1, min(len(weight), SAMPLED_ROWS)).round().long()
    sample, levels = weight[rows].to(torch.float64), ScaledLevels(grid.levels, grid.scales[rows])
    nearest = sample - levels.decode(levels.codes(sample))
    worst = dict.fromkeys(dampings, 0.0)  # output error relative to that of the nearest codes
    for left_out, moment in enumerate(moments):
        metric = Metric(moment_factor(moment))
        reference = metric.norm(nearest)
        if not reference:
            continue
        others = torch.stack([each for number, each in enumerate(moments) if number != left_out]).sum(0)
        found = calibrated_codes_of_each(sample, [(others, damping) for damping in dampings], levels)
        for damping, codes in zip(dampings, found, strict=True):
            worst[damping] = max(worst[damping], metric.norm(sample - levels.decode(codes)) / reference)
    damping = min(worst, key=worst.__getitem__)
    return damping if 0 < worst[damping] < 1 else None
