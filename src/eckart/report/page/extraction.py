"""The page's data of an extraction: its size and error, each layer with its position, and its gain curve."""

import math
from pathlib import Path
from typing import Any

from eckart.operations import Analysis
from eckart.operations.analysis.places import forward_order, places
from eckart.report.page.numbers import Numbers
from eckart.report.page.render import rendered


def extraction_page(extraction: dict[str, Any], *, title: str) -> str:
    """The page of one extraction, from the content of its `extract.json`."""
    return rendered({"extractions": [extraction_data(title, extraction)]}, Numbers(), title=title)


def extraction_data(title: str, extraction: dict[str, Any]) -> dict[str, Any]:
    """The page's view of an `extract.json`.

    Raises:
        KeyError, TypeError: a field is missing, or has another type.
    """
    layers = extraction["layers"]
    where = places(layer["name"] for layer in layers)
    kinds = forward_order(place.kind for place in where.values())
    distilled = extraction.get("distill") or {}
    return {
        "title": title,
        **{key: extraction[key] for key in ("params", "bytes", "error", "error_lower_bound")},
        "eval": extraction.get("eval"),
        "gain": extraction.get("gain"),
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


def gain_stops(title: str, extraction: dict[str, Any]) -> dict[str, Any]:
    """A gain curve as stops of the slider: the measured ranks that keep more than every lower one.

    Args:
        title: of the extraction.
        extraction: the content of its file, with `gain`.

    Returns:
        `title`, `keep` that was asked for, `metric`, `shared` and `tokens`; `names` of the layers; and `stops` from the
        lowest rank, each with `rank`, `gain` and its `interval`, `ranks` by layer if they are shared, `keep`, a share
        that only this and higher ranks keep, and `next`, whether the rank below it was measured too.

    Raises:
        KeyError, TypeError: a field is missing, or has another type.
    """
    gain, stops, best, before = extraction["gain"], [], 0.0, 0
    for point in gain["curve"]:
        asked, found = gain["keep"], point["gain_recovered"]
        keep = asked if best < asked <= found else _share_between(best, found)
        if keep is not None:
            kept = {key: point.get(key) for key in ("rank", "interval", "ranks")}
            stops.append(kept | {"gain": found, "keep": keep, "next": point["rank"] == before + 1})
            best = found
        before = point["rank"]
    return {
        "title": title,
        "keep": gain["keep"],
        "metric": gain.get("metric", "loss"),
        "shared": gain.get("shared", False),
        "tokens": (extraction.get("eval") or {}).get("tokens"),
        "names": [layer["name"] for layer in extraction["layers"]],
        "stops": stops,
    }


def is_of(extraction: dict[str, Any], analysis: Analysis) -> bool:
    """Whether the gain curve of an extraction, if it has one, is of the update or the adapter of an analysis."""
    gain = extraction.get("gain") or {}
    if not gain.get("source") or analysis.kind == "weights":
        return False
    shapes = {matrix.name: list(matrix.shape) for matrix in analysis.matrices}
    if any(shapes.get(layer["name"]) != layer["shape"] for layer in extraction["layers"]):
        return False
    same_base = analysis.base is None or _same(analysis.base, gain["base"])
    return same_base and _same(analysis.source, gain["source"])


def _same(one: str, other: str) -> bool:
    """Whether two SOURCEs are one, as far as their names say."""
    return one == other or Path(one).resolve() == Path(other).resolve()


def _share_between(low: float, high: float) -> float | None:
    """The shortest decimal share above `low` and at most `high`, from two digits; None if there is none below 1."""
    for scale in (10**digits for digits in range(2, 7)):
        share = min(math.floor(high * scale), scale - 1) / scale
        if share > max(low, 0.0):
            return share
    return None
