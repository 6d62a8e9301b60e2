"""The page's data of a training: its result and settings, its losses, and the growth of every update."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eckart.operations.analysis.places import by_kind, places
from eckart.report.figures.training import neighbors
from eckart.report.page.numbers import Numbers
from eckart.report.page.render import rendered
from eckart.training.trajectory import LOGGED, Dynamics, LayerDynamics

if TYPE_CHECKING:
    from eckart.training import TrainResult

MOST_VALUES = 2**18  # singular values of all recorded steps that one page shows
GROWTH = ("relative_norm", "norm", "A_norm", "B_norm", "effective_rank", "stable_rank")
RESULT = ("trainable_params", "total_params", "steps", "heldout_loss_before", "heldout_loss_after", "heldout_tokens")
SETTINGS = {
    "method": "Method",
    "rank": "Rank",
    "rank_pattern": "Other ranks",
    "alpha": "Alpha",
    "rslora": "rsLoRA",
    "target": "Target modules",
    "exclude": "Excluded modules",
    "dropout": "Dropout",
    "bias": "Biases",
    "init": "Initialization",
    "learning_rate": "Learning rate",
    "schedule": "Schedule",
    "warmup": "Warm-up (share of steps)",
    "lora_plus_ratio": "LoRA+ ratio",
    "weight_decay": "Weight decay",
    "max_gradient_norm": "Gradient clipping",
    "batch_size": "Batch size",
    "accumulate": "Gradient accumulation",
    "steps": "Steps",
    "epochs": "Epochs",
    "dtype": "Data type",
    "device": "Device",
    "quantize": "Quantization",
    "gradient_checkpointing": "Gradient checkpointing",
    "seed": "Seed",
    "save_every": "Steps between checkpoints",
    "eval_every": "Steps between held-out losses",
    "keep": "Adapter to keep",
}
DATA = {
    "source": "Source",
    "form": "Form",
    "records": "Records",
    "sequences": "Sequences",
    "truncated": "Truncated records",
    "skipped": "Skipped records",
    "max_length": "Tokens per sequence",
    "packing": "Packing",
    "answers_only": "Loss on answers only",
    "heldout_source": "Held-out source",
    "held_out": "Share held out",
    "heldout_sequences": "Held-out sequences",
    "heldout_overlap": "Held-out sequences in the training data",
}
UNSET = (None, [], (), {})
NOTHING = float("nan")  # in the block of numbers: undefined at this step


def training_page(result: "TrainResult", *, title: str) -> str:
    """The page of one training."""
    numbers = Numbers()
    data = training_data(title, result.to_json(), result.dynamics, numbers)
    return rendered({"trainings": [data]}, numbers, title=title)


def training_data(
    title: str, result: dict[str, Any] | None, dynamics: Dynamics | None, numbers: Numbers
) -> dict[str, Any]:
    """The page's view of a training.

    Args:
        title: distinguishes it from others on the page.
        result: contents of `train.json`.
        dynamics: the recorded dynamics.
        numbers: the page's block of numbers.

    Raises:
        KeyError: `result` lacks a field.
    """
    data: dict[str, Any] = {"title": title, "model": None, "facts": None, "log": None, "layers": None}
    data |= {"settings": [], "data": [], "neighbors": 1}
    if result is not None:
        data["facts"] = {key: result[key] for key in (*RESULT, "seconds", "peak_bytes")}
        data["model"] = result["run"].get("model")
        data["log"] = {"loss": [result["losses"]["step"], result["losses"]["loss"]]}
        data |= settings_of(result["run"], result.get("data") or {})
    if dynamics is not None:
        data["model"] = data["model"] or dynamics.title
        data["log"] = {key: dynamics.logged(key) for key in LOGGED}
        data |= _recorded(dynamics, numbers)
    data["neighbors"] = neighbors(len(data["log"]["loss"][0])) if data["log"] else 1
    return data


def settings_of(run: dict[str, Any], data: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Name and value of each setting, and of each fact about the data, that a training has."""
    settings, data = (
        {**(run.get("config") or {}), **(run.get("settings") or {})},
        {**(run.get("options") or {}), **data},
    )
    if data.get("heldout_source") is not None:
        data.pop("held_out", None)  # the share of `source`, which is then not split
    return {"settings": _labelled(settings, SETTINGS), "data": _labelled(data, DATA)}


def _labelled(values: dict[str, Any], labels: dict[str, str]) -> list[list[str]]:
    """The values in the order of their labels; nothing is said of what is not set."""
    return [[label, _setting_text(values[key])] for key, label in labels.items() if values.get(key) not in UNSET]


def _setting_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {rank}" for name, rank in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _recorded(dynamics: Dynamics, numbers: Numbers) -> dict[str, Any]:
    """Every layer at the recorded steps, with spectra at as many of them as fit."""
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
    """Indices of the recorded steps whose spectra are shown: all, or evenly spaced from the first to the last."""
    most = max(2, MOST_VALUES // max(values, 1))
    if steps <= most:
        return list(range(steps))
    return sorted({round(place * (steps - 1) / (most - 1)) for place in range(most)})


def _growth(column: Sequence[float | None]) -> list[float]:
    return [NOTHING if value is None else value for value in column]


def _spectra(layer: LayerDynamics, frames: Sequence[int]) -> list[float]:
    """Singular values at the frames, padded with zeros to the adapter's rank: omitted ones were rounding."""
    values: list[float] = []
    for frame in frames:
        recorded = layer.singular_values[frame]
        leading = [NOTHING] * layer.rank if recorded is None else recorded[: layer.rank]
        values += [*leading, *(0.0 for _ in range(layer.rank - len(leading)))]
    return values
