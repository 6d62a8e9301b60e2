"""Sweeps and extractions as the page carries them: the fields that it shows, and each layer's place."""

from typing import Any

from eckart.operations.analysis.places import forward_order, places


def sweep_data(title: str, sweep: dict[str, Any]) -> dict[str, Any]:
    """The page's view of a `sweep.json`.

    Raises:
        KeyError, TypeError: a field is missing, or is something else.
    """
    spot = sweep["sweet_spot"]
    return {
        "title": title,
        "model": sweep["about"]["model"],
        "base_loss": sweep["base_loss"],
        "heldout_tokens": sweep["heldout_tokens"],
        "settings": sweep["settings"],
        "cells": [
            {key: cell[key] for key in ("rank", "target", "seed", "loss", "seconds", "peak_bytes", "error")}
            for cell in sweep["cells"]
        ],
        "sweet_spot": spot and {key: spot[key] for key in ("rank", "target", "params", "noise", "probability")},
    }


def extraction_data(title: str, extraction: dict[str, Any]) -> dict[str, Any]:
    """The page's view of an `extract.json`.

    Raises:
        KeyError, TypeError: a field is missing, or is something else.
    """
    layers = extraction["layers"]
    where = places(layer["name"] for layer in layers)
    kinds = forward_order(place.kind for place in where.values())
    distilled = extraction.get("distill") or {}
    return {
        "title": title,
        **{key: extraction[key] for key in ("params", "bytes", "error", "error_lower_bound")},
        "eval": extraction.get("eval"),
        "distilled": bool(distilled),
        "kinds": kinds,
        "stack": sorted({place.layer for place in where.values()}, key=lambda layer: -1 if layer is None else layer),
        "layers": [
            {
                **{key: layer[key] for key in ("name", "shape", "rank", "error", "error_lower_bound")},
                "kind": kinds.index(where[layer["name"]].kind),
                "layer": where[layer["name"]].layer,
            }
            for layer in layers
        ],
    }
