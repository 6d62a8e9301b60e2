"""The page's data of comparisons: two adapters or checkpoints, or a merge check."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from eckart.operations.analysis.places import forward_order, places
from eckart.report.page.numbers import Numbers
from eckart.report.page.render import Sections, rendered
from eckart.report.tables.comparison import verdict_sentence

if TYPE_CHECKING:
    from eckart.operations import Comparison, MergeCheck

NORMS = ("norm_a", "norm_b", "cosine")


def comparison_page(result: "Comparison | MergeCheck", *, title: str) -> str:
    """The page of one comparison, or of one merge check."""
    return rendered(comparison_sections({title: result.to_json()}), Numbers(), title=title)


def comparison_sections(comparisons: Mapping[str, dict[str, Any]]) -> Sections:
    """The page's view of the contents of `comparison.json` files by their titles.

    Raises:
        KeyError, TypeError: a field is missing, or has another type.
    """
    kinds = {title: each["kind"] for title, each in comparisons.items()}
    return {
        "comparisons": [comparison_data(title, it) for title, it in comparisons.items() if kinds[title] != "merge"],
        "merges": [merge_check_data(title, it) for title, it in comparisons.items() if kinds[title] == "merge"],
    }


def comparison_data(title: str, comparison: dict[str, Any]) -> dict[str, Any]:
    """The page's view of a `comparison.json` of two adapters or checkpoints.

    Raises:
        KeyError, TypeError: a field is missing, or has another type.
    """
    matrices = comparison["matrices"]
    where = places(matrix["name"] for matrix in matrices)
    kinds = forward_order(place.kind for place in where.values())
    return {
        "title": title,
        **{key: comparison[key] for key in ("kind", "a", "b", "base", "total", "unpaired")},
        "kinds": kinds,
        "layers": sorted({place.layer for place in where.values()}, key=lambda layer: -1 if layer is None else layer),
        "matrices": [
            {
                **{key: matrix[key] for key in ("name", "shape", *NORMS)},
                "kind": kinds.index(where[matrix["name"]].kind),
                "layer": where[matrix["name"]].layer,
                "outputs": _shared(matrix["outputs"]),
                "inputs": _shared(matrix["inputs"]),
                "intruders": matrix["intruders"] and [len(side["found"]) for side in matrix["intruders"]],
            }
            for matrix in matrices
        ],
    }


def merge_check_data(title: str, check: dict[str, Any]) -> dict[str, Any]:
    """The page's view of a `comparison.json` of a merge check.

    Raises:
        KeyError, TypeError: a field is missing, or has another type.
    """
    return {
        "title": title,
        "verdict": verdict_sentence(check),
        "matrices": [
            {key: matrix[key] for key in ("name", "shape", "verdict", "ulps", "error", "weight")}
            for matrix in check["matrices"]
        ],
        "altered": check["altered"],
        "faults": check["faults"],
        "skipped": [f"{item['name']}: {item['reason']}" for item in check["not_checked"]],
        "unchanged": check["unchanged"],
    }


def _shared(alignment: dict[str, Any] | None) -> dict[str, float] | None:
    """φ of all leading directions, and its value for random subspaces."""
    return alignment and {"phi": alignment["phi"][-1][-1], "chance": alignment["chance"][-1][-1]}
