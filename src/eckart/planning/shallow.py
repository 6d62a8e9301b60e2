"""A deep model simulated through two shallow ones: equal layers take equal memory, so two depths tell the others.

Peaks are taken at the same place of the step, which is checked; a model whose layers differ is simulated whole.
"""

import copy
import re
from typing import TYPE_CHECKING

from torch import nn

from eckart.planning.simulation import PARTS, Part, Simulation

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from eckart.planning.counts import Outline

_LEAST_PERIODS = 6  # below, the whole model is as quick


def shallow_depths(outline: "Outline") -> tuple[int, int] | None:
    """Two numbers of layers whose simulations tell that of the whole model; None where none do."""
    layers = getattr(outline.config.get_text_config(), "num_hidden_layers", None)
    stacks = [part for part in outline.model.modules() if isinstance(part, nn.ModuleList) and len(part) == layers]
    if not isinstance(layers, int) or len(stacks) != 1:
        return None
    types = getattr(outline.config.get_text_config(), "layer_types", None) or [None] * layers
    looks = [(_look(layer), kind) for layer, kind in zip(stacks[0], types, strict=False)]
    period = next(p for p in range(1, layers + 1) if all(look == looks[i % p] for i, look in enumerate(looks)))
    if layers % period or layers < _LEAST_PERIODS * period:
        return None
    # A first layer whose inputs need no gradient takes less: it must not be the last one too.
    return (period, 2 * period) if period > 1 else (2, 3)


def at_depth(config: "PretrainedConfig", layers: int) -> "PretrainedConfig":
    """The same model with fewer layers."""
    shallow = copy.deepcopy(config)
    text = shallow.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return shallow


def extrapolate(first: Simulation, second: Simulation, depths: tuple[int, int], layers: int) -> Simulation | None:
    """What the whole model takes; None where the peaks of the shallow ones lie at different places."""
    if _place(first) != _place(second):
        return None
    deeper = (layers - depths[1]) / (depths[1] - depths[0])

    def line(one: int, two: int) -> int:
        return round(two + deeper * (two - one))

    parts: dict[Part, int] = {part: line(first.parts[part], second.parts[part]) for part in PARTS}
    return Simulation(
        peak_bytes=sum(parts.values()),
        parts=parts,
        where=_place(second),
        trainable_params=line(first.trainable_params, second.trainable_params),
        total_params=line(first.total_params, second.total_params),
        seconds=first.seconds + second.seconds,
        notes=second.notes,
    )


def _look(layer: nn.Module) -> tuple[object, ...]:
    return tuple((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters())


def _place(simulation: Simulation) -> str:
    """Where the peak is, without the number of the layer."""
    return re.sub(r"\.\d+(?=\.|,|$)", "", simulation.where)
