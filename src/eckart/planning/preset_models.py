"""Configs of well-known models, shipped with eckart so that a plan needs neither network access nor a licence."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from eckart.checkpoint.naming import nearest_names


@dataclass(frozen=True)
class Preset:
    """A published model.

    Attributes:
        name: short name such as `llama-3-8b`.
        hub: name on the hub, which also selects the preset.
        params: number of parameters, shared ones counted once.
        config: fields of its config.json that determine what it computes.
    """

    name: str
    hub: str
    params: int
    config: dict[str, Any]


@cache
def presets() -> dict[str, Preset]:
    """All presets by name, by family and size."""
    text = (files("eckart.planning") / "presets.json").read_text(encoding="utf-8")
    return {name: Preset(name, **facts) for name, facts in json.loads(text).items()}


def find_preset(name: str) -> Preset | None:
    """The preset with this name or hub name, regardless of case."""
    wanted = name.lower()
    return next((each for each in presets().values() if wanted in (each.name, each.hub.lower())), None)


def nearest_presets(name: str, count: int = 3) -> list[str]:
    """The presets with the most similar names; of a hub name, the part after the slash is compared."""
    return nearest_names(name.lower().rpartition("/")[2], presets(), count=count, cutoff=0.5)
