"""The page's data of an extraction: its size and error, and each layer with its position in the model."""

from typing import Any

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
