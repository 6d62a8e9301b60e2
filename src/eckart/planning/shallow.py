"""A deep model extrapolated from two shallow ones: equal layers take equal memory, so it grows linearly with depth.

Both peaks must be at the same place of the step, which is checked; a model with different layers is simulated in full.
"""

import copy
import re
from typing import TYPE_CHECKING

from torch import nn

from eckart.planning.forecast import Forecast
from eckart.planning.memory import PARTS, Part

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from eckart.planning.architecture import Outline

_MIN_PERIODS = 6  # below, the full model is as fast


def shallow_depths(outline: "Outline") -> tuple[int, int] | None:
    """Two numbers of layers from which the full model can be extrapolated; None if there are none."""
    layers = getattr(outline.config.get_text_config(), "num_hidden_layers", None)
    stacks = [each for each in outline.model.modules() if isinstance(each, nn.ModuleList) and len(each) == layers]
    if not isinstance(layers, int) or len(stacks) != 1:
        return None
    types = getattr(outline.config.get_text_config(), "layer_types", None) or [None] * layers
    shapes = [(_shapes(layer), kind) for layer, kind in zip(stacks[0], types, strict=False)]
    period = next(p for p in range(1, layers + 1) if all(each == shapes[i % p] for i, each in enumerate(shapes)))
    if layers % period or layers < _MIN_PERIODS * period:
        return None
    # The first layer, whose inputs need no gradient, takes less: it must not also be the last one.
    return (period, 2 * period) if period > 1 else (2, 3)


def at_depth(config: "PretrainedConfig", layers: int) -> "PretrainedConfig":
    """The same model with fewer layers."""
    shallow = copy.deepcopy(config)
    text = shallow.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return shallow


def extrapolate(first: Forecast, second: Forecast, depths: tuple[int, int], layers: int) -> Forecast | None:
    """The memory of the full model; None if the peaks of the shallow ones are at different places."""
    if _place(first) != _place(second):
        return None
    deeper = (layers - depths[1]) / (depths[1] - depths[0])

    def line(one: int, two: int) -> int:
        return round(two + deeper * (two - one))

    parts: dict[Part, int] = {part: line(first.parts[part], second.parts[part]) for part in PARTS}
    return Forecast(
        setting=second.setting,
        peak_bytes=sum(parts.values()),
        parts=parts,
        where=_place(second),
        layers=depths,
        trainable_params=line(first.trainable_params, second.trainable_params),
        total_params=line(first.total_params, second.total_params),
        seconds=first.seconds + second.seconds,
        notes=second.notes,
    )


def _shapes(layer: nn.Module) -> tuple[object, ...]:
    return tuple((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters())


def _place(forecast: Forecast) -> str:
    """The place of the peak, without the number of the layer."""
    return re.sub(r"\.\d+(?=\.|,|$)", "", forecast.where)
