"""A training as the page carries it: what it came to, its losses, and how every update grew."""

from collections.abc import Sequence
from typing import Any

from eckart.operations.analysis.places import by_kind, places
from eckart.report.page.numbers import Numbers
from eckart.training.trajectory import LOGGED, Dynamics, LayerDynamics

MOST_VALUES = 2**18  # singular values of all recorded steps that one page shows
GROWTH = ("relative_norm", "norm", "A_norm", "B_norm", "effective_rank", "stable_rank")
TOLD = ("trainable_params", "total_params", "steps", "heldout_loss_before", "heldout_loss_after", "heldout_tokens")
NOTHING = float("nan")  # in the block of numbers: undefined at this step


def training_data(
    title: str, told: dict[str, Any] | None, dynamics: Dynamics | None, numbers: Numbers
) -> dict[str, Any]:
    """The page's view of a training.

    Args:
        title: tells it from others on the page.
        told: `train.json`.
        dynamics: what was recorded.
        numbers: of the page.

    Raises:
        KeyError: `told` lacks a field.
    """
    data: dict[str, Any] = {"title": title, "model": None, "facts": None, "log": None, "layers": None}
    if told is not None:
        data["facts"] = {key: told[key] for key in (*TOLD, "seconds", "peak_bytes")}
        data["model"] = told["run"].get("model")
        data["log"] = {"loss": [told["losses"]["step"], told["losses"]["loss"]]}
    if dynamics is not None:
        data["model"] = data["model"] or dynamics.title
        data["log"] = {key: dynamics.logged(key) for key in LOGGED}
        data |= _recorded(dynamics, numbers)
    return data


def _recorded(dynamics: Dynamics, numbers: Numbers) -> dict[str, Any]:
    """Every layer at the recorded steps; its spectra at as many of them as fit."""
    where = places(layer.name for layer in dynamics.layers)
    kinds = list(by_kind(dynamics.layers))
    frames = _frames(len(dynamics.steps), sum(layer.rank for layer in dynamics.layers))
    layers = []
    for layer in dynamics.layers:
        place = where[layer.name]
        entry = {"name": layer.name, "kind": kinds.index(place.kind), "layer": place.layer, "shape": list(layer.shape)}
        growth = [_growth(getattr(layer, key)) for key in GROWTH]
        entry |= {"rank": layer.rank, "at": numbers.add(value for column in growth for value in column)[0]}
        layers.append(entry | {"spectra": numbers.add(_spectra(layer, frames))[0]})
    stack = sorted({place.layer for place in where.values()}, key=lambda layer: -1 if layer is None else layer)
    return {
        "steps": dynamics.steps,
        "frames": frames,
        "growth": list(GROWTH),
        "kinds": kinds,
        "stack": stack,
        "layers": layers,
    }


def _frames(steps: int, values: int) -> list[int]:
    """Places of the recorded steps whose spectra are shown: all, or evenly chosen with the first and the last."""
    most = max(2, MOST_VALUES // max(values, 1))
    if steps <= most:
        return list(range(steps))
    return sorted({round(place * (steps - 1) / (most - 1)) for place in range(most)})


def _growth(column: Sequence[float | None]) -> list[float]:
    return [NOTHING if value is None else value for value in column]


def _spectra(layer: LayerDynamics, frames: Sequence[int]) -> list[float]:
    """Singular values of the frames, each as many as the adapter has rank: those left out there are rounding."""
    values: list[float] = []
    for frame in frames:
        found = layer.singular_values[frame]
        known = [NOTHING] * layer.rank if found is None else found[: layer.rank]
        values += [*known, *(0.0 for _ in range(layer.rank - len(known)))]
    return values
