"""Facts of models that people name: their configs, shipped, so that a plan needs neither network nor licence."""

import difflib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A published model.

    Attributes:
        name: as it is typed: `llama-3-8b`.
        hub: its name on the hub, which is taken for the preset too.
        params: numbers in it, shared ones counted once.
        config: fields of its config.json that decide what it computes.
    """

    name: str
    hub: str
    params: int
    config: dict[str, Any]


@cache
def presets() -> dict[str, Preset]:
    """All presets by name, families together and small ones first."""
    text = (files("eckart.planning") / "presets.json").read_text(encoding="utf-8")
    return {name: Preset(name, **facts) for name, facts in json.loads(text).items()}


def find_preset(name: str) -> Preset | None:
    """The preset of this name or hub name, capitals or not."""
    wanted = name.lower()
    return next((each for each in presets().values() if wanted in (each.name, each.hub.lower())), None)


def nearest_presets(name: str, count: int = 3) -> list[str]:
    """Names like `name`, for whoever mistyped one; of a hub name the part behind the slash counts."""
    return difflib.get_close_matches(name.lower().rpartition("/")[2], presets(), n=count, cutoff=0.5)
